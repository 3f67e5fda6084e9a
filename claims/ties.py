METHODS = ['ties']
PAPER = 'arXiv:2306.01708'
CLAIM = 'With four task vectors at full weight, ties at density 0.2 has a lower mean loss than their plain sum.'
NEEDS = ['lm/base', 'lm/german', 'lm/french', 'lm/python', 'lm/shakespeare', 'text/held']


def measure(lab):
    names = ['german', 'french', 'python', 'shakespeare']
    base = lab.model('lm/base')
    models = [(lab.model('lm/' + n), {'weight': 1.0}) for n in names]
    plain = lab.mean_loss(lab.merge('task_arithmetic', models, base=base), names)
    ties = lab.mean_loss(lab.merge('ties', [(m, {'weight': 1.0, 'density': 0.2}) for m, _ in models], base=base), names)
    return ties < plain, {'mean loss, sum': plain, 'ties': ties, 'base': lab.mean_loss(base, names)}
