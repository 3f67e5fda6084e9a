METHODS = ['regmean', 'regmean_plusplus']
PAPER = 'arXiv:2212.09849'
CLAIM = 'On the tiny models, RegMean of two fine-tunes has a lower mean loss than their mean.'
NEEDS = []


def measure(lab):
    names = ['german', 'python']
    mean = lab.mean_loss(lab.merge('linear', [(lab.model('tiny-' + n), {'weight': 1.0}) for n in names]), names)
    out = lab.merge_config({'merge_method': 'regmean', 'parameters': {'samples': 0, 'length': 64},
                            'models': [{'model': lab.model('tiny-' + n), 'text': str(lab.training_text(n))} for n in names]})
    return lab.mean_loss(out, names) < mean, {'mean loss, mean': mean, 'RegMean (calibrated on the same text)': lab.mean_loss(out, names)}
