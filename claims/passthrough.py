METHODS = ['passthrough']
PAPER = 'mergekit'
CLAIM = 'A model with layers repeated still loads and runs, and its loss rises.'
NEEDS = []


def measure(lab):
    base = lab.model('tiny-base')
    out = lab.merge_config({'merge_method': 'passthrough', 'slices': [{'sources': [{'model': base, 'layer_range': [0, 2]}]}, {'sources': [{'model': base, 'layer_range': [1, 2]}]}]})
    return lab.loss(out, 'english') > lab.loss(base, 'english'), {'loss': lab.loss(base, 'english'), 'with a layer twice': lab.loss(out, 'english')}
