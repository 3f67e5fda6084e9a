METHODS = ['model_stock']
PAPER = 'arXiv:2403.19522'
CLAIM = 'model_stock of fine-tunes is at least as accurate as their uniform average minus 0.3 points.'
NEEDS = ['vision/forget', 'vision/data/mnist']


def measure(lab):
    base = lab.model('vision/forget/base')
    tuned = [lab.model(f'vision/forget/eight-{i}') for i in range(4)]
    stock = lab.accuracy(lab.merge('model_stock', tuned, base=base, dtype='float16'))
    mean = lab.accuracy(lab.merge('linear', [(m, {'weight': 1.0}) for m in tuned], dtype='float16'))
    return stock >= mean - 0.003, {'accuracy, model_stock': stock, 'mean': mean}
