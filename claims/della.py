METHODS = ['della_linear', 'della']
PAPER = 'arXiv:2406.11617'
CLAIM = 'Dropping small changes with a higher probability (della) keeps at least as much of the gain as dropping at random (dare).'
NEEDS = ['lm/base', 'lm/german', 'text/held']


def measure(lab):
    base, german = lab.model('lm/base'), lab.model('lm/german')
    def share(seed, method, **more):
        out = lab.merge_config({'merge_method': method, 'dtype': 'float32', 'base_model': base,
                                'models': [{'model': german, 'parameters': {'weight': 1.0, 'density': 0.5, **more}}]}, '--seed', str(seed))
        return lab.share_of_gain(out, base, german, 'german')
    seeds = (1, 2, 3)
    della = sum(share(s, 'della_linear', epsilon=0.1) for s in seeds) / len(seeds)
    dare = sum(share(s, 'dare_linear') for s in seeds) / len(seeds)
    return della >= dare, {'share of gain, mean of 3 seeds, della': della, 'dare': dare}
