METHODS = ['linear']
PAPER = 'mergekit'
CLAIM = 'The mean of fine-tunes of one network is at least as accurate as their median member; that of independent networks is far worse than either.'
NEEDS = ['vision/forget', 'vision/data/mnist', 'vision/rebasin']


def measure(lab):
    tuned = [lab.model(f'vision/forget/eight-{i}') for i in range(4)]
    members = sorted(lab.accuracy(m) for m in tuned)
    mean = lab.accuracy(lab.merge('linear', [(m, {'weight': 1.0}) for m in tuned], dtype='float16'))
    apart = [lab.model(f'vision/rebasin/mlp-{i}') for i in (0, 1)]
    far = lab.accuracy(lab.merge('linear', [(m, {'weight': 1.0}) for m in apart], dtype='float16'))
    return mean >= (members[1] + members[2]) / 2 and far < min(map(lab.accuracy, apart)) - 0.1, {
        'accuracy, mean of 4 fine-tunes': mean, 'median member': (members[1] + members[2]) / 2, 'mean of two seeds': far}
