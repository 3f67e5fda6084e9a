METHODS = ['sce']
PAPER = 'arXiv:2408.07990'
CLAIM = 'Merging by the variance of changes (sce) is within 5 % of the mean loss of ties.'
NEEDS = ['lm/base', 'lm/german', 'lm/french', 'text/held']


def measure(lab):
    base, german, french = (lab.model('lm/' + m) for m in ('base', 'german', 'french'))
    texts = ['german', 'french']
    sce = lab.mean_loss(lab.merge('sce', [german, french], base=base, parameters={'select_topk': 0.5}), texts)
    ties = lab.mean_loss(lab.merge('ties', [(m, {'weight': 1.0, 'density': 0.5}) for m in (german, french)], base=base), texts)
    return abs(sce / ties - 1) < 0.05, {'mean loss, sce': sce, 'ties': ties}
