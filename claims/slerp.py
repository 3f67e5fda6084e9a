METHODS = ['slerp']
PAPER = 'mergekit'
CLAIM = 'Halfway between two fine-tunes, slerp is within 2 % of the mean loss of the plain mean.'
NEEDS = ['lm/german', 'lm/french', 'text/held']


def measure(lab):
    german, french = lab.model('lm/german'), lab.model('lm/french')
    texts = ['german', 'french']
    linear = lab.mean_loss(lab.merge('linear', [(german, {'weight': 0.5}), (french, {'weight': 0.5})]), texts)
    slerp = lab.mean_loss(lab.merge_config({'merge_method': 'slerp', 'dtype': 'float32', 'base_model': german, 'parameters': {'t': 0.5},
                                            'models': [{'model': german}, {'model': french}]}), texts)
    return abs(slerp / linear - 1) <= 0.02, {'mean loss linear': linear, 'slerp': slerp}
