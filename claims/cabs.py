METHODS = ['cabs']
PAPER = 'github.com/zongzhenyang/CABS'
CLAIM = 'At a quarter of the entries, conflict-free pruning (cabs) keeps at least the mean share of gain of pruning by magnitude and adding.'
NEEDS = ['lm/base', 'lm/german', 'lm/french', 'lm/python', 'text/held']


def measure(lab):
    names = ['german', 'french', 'python']
    base = lab.model('lm/base')
    tuned = {n: lab.model('lm/' + n) for n in names}
    def mean_share(out):
        return sum(lab.share_of_gain(out, base, tuned[n], n) for n in names) / len(names)
    cabs = mean_share(lab.merge('cabs', [(tuned[n], {'weight': 1.0}) for n in names], base=base, parameters={'n': 64, 'm': 256}))
    pruned = mean_share(lab.merge('breadcrumbs', [(tuned[n], {'weight': 1.0, 'density': 0.25, 'gamma': 0.0}) for n in names], base=base))
    return cabs >= pruned, {'mean share of gain, cabs': cabs, 'magnitude': pruned}
