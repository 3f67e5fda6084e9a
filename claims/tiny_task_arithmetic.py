METHODS = ['task_arithmetic']
PAPER = 'arXiv:2212.04089'
CLAIM = 'On the tiny models, half of two task vectors lowers the loss on both domains.'
NEEDS = []


def measure(lab):
    base, german, python = (lab.model('tiny-' + m) for m in ('base', 'german', 'python'))
    merged = lab.merge('task_arithmetic', [(german, {'weight': 0.5}), (python, {'weight': 0.5})], base=base)
    shares = {'share of gain, german': lab.share_of_gain(merged, base, german, 'german'), 'python': lab.share_of_gain(merged, base, python, 'python')}
    return min(shares.values()) > 0, shares
