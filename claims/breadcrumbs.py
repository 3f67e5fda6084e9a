METHODS = ['breadcrumbs', 'breadcrumbs_ties']
PAPER = 'arXiv:2312.06795'
CLAIM = 'Leaving out the largest and smallest changes (density 0.9, gamma 0.01) keeps more than 80 % of the gain of each fine-tune.'
NEEDS = ['lm/base', 'lm/german', 'lm/python', 'text/held']


def measure(lab):
    base = lab.model('lm/base')
    shares = {}
    for n in ('german', 'python'):
        tuned = lab.model('lm/' + n)
        merged = lab.merge('breadcrumbs', [(tuned, {'weight': 1.0, 'density': 0.9, 'gamma': 0.01})], base=base)
        shares['share of gain, ' + n] = lab.share_of_gain(merged, base, tuned, n)
    return min(shares.values()) > 0.8, shares
