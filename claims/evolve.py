METHODS = ['ties']
PAPER = 'mergekit-evolve'
CLAIM = 'Weights and densities of ties found by evolution on training text have a lower mean held-out loss than uniform ones.'
NEEDS = ['lm/base', 'lm/german', 'lm/python', 'text/held', 'text/train']


def measure(lab):
    base, names = lab.model('lm/base'), ['german', 'python']
    uniform = lab.mean_loss(lab.merge('ties', [(lab.model('lm/' + n), {'weight': 0.5, 'density': 0.5}) for n in names], base=base), names)
    report = lab.search({'merge_method': 'ties', 'dtype': 'float32', 'base_model': base, 'models': [{'model': lab.model('lm/' + n)} for n in names],
                         'search': {'rule': 'cma_es', 'text': [str(lab.training_text(n)) for n in names], 'window': 256, 'windows': 4, 'evaluations': 60,
                                    'parameters': [{'name': 'weight', 'range': [0, 1.5], 'start': 0.5}, {'name': 'density', 'range': [0.05, 1], 'start': 0.5}]}}, 1)
    found = lab.mean_loss(report['applied']['output'], names)
    return found < uniform, {'mean loss, uniform': uniform, 'found': found}
