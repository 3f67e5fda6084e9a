METHODS = ['transfer']
PAPER = 'arXiv:2503.20110'
CLAIM = 'A fine-tune carried over to a newer base has more than 40 % of its gain there.'
NEEDS = ['lm/base', 'lm/base-v2', 'lm/german', 'lm/python', 'text/held']


def measure(lab):
    base, newer = lab.model('lm/base'), lab.model('lm/base-v2')
    shares = {}
    for n in ('german', 'python'):
        tuned = lab.model('lm/' + n)
        moved = lab.merge('transfer', [tuned, newer], base=base)
        shares['share of its own gain, ' + n] = (lab.loss(newer, n) - lab.loss(moved, n)) / (lab.loss(base, n) - lab.loss(tuned, n))
    return min(shares.values()) > 0.4, shares
