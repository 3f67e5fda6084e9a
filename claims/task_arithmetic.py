METHODS = ['task_arithmetic']
PAPER = 'arXiv:2212.04089'
CLAIM = 'Half of two task vectors added to the base recovers more than half of both gains.'
NEEDS = ['lm/base', 'lm/german', 'lm/french', 'text/held']


def measure(lab):
    base, german, french = (lab.model('lm/' + m) for m in ('base', 'german', 'french'))
    merged = lab.merge('task_arithmetic', [(german, {'weight': 0.5}), (french, {'weight': 0.5})], base=base)
    shares = {'share of gain, german': lab.share_of_gain(merged, base, german, 'german'), 'french': lab.share_of_gain(merged, base, french, 'french')}
    return min(shares.values()) > 0.5, shares
