METHODS = ['dare_linear', 'dare_ties']
PAPER = 'arXiv:2311.03099'
CLAIM = 'Dropping half of a task vector at random and rescaling loses less than 15 % of its gain; without rescaling about half.'
NEEDS = ['lm/base', 'lm/german', 'text/held']


def measure(lab):
    base, german = lab.model('lm/base'), lab.model('lm/german')
    def share(seed, rescale, method):
        out = lab.merge_config({'merge_method': method, 'dtype': 'float32', 'base_model': base, 'parameters': {'rescale': rescale},
                                'models': [{'model': german, 'parameters': {'weight': 1.0, 'density': 0.5}}]}, '--seed', str(seed))
        return lab.share_of_gain(out, base, german, 'german')
    with_rescale = [share(seed, True, 'dare_linear') for seed in (1, 2, 3)]
    without = [share(seed, False, 'dare_linear') for seed in (1, 2, 3)]
    low, high = min(with_rescale), max(without)
    return low > 0.85 and high < low, {'share of gain, rescaled, least of 3 seeds': low, 'not rescaled, most of 3': high}
