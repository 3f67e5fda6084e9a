METHODS = ['arcee_fusion']
PAPER = 'mergekit'
CLAIM = 'Fusing only the important changes keeps more than 60 % of the gain while less than 20 % of the entries change.'
NEEDS = ['lm/base', 'lm/python', 'text/held']


def measure(lab):
    base, tuned = lab.model('lm/base'), lab.model('lm/python')
    merged = lab.merge_config({'merge_method': 'arcee_fusion', 'dtype': 'float32', 'base_model': base, 'models': [{'model': base}, {'model': tuned}]})
    total = lab.run('diff', merged, base)['total']
    changed = total['num_changed'] / total['num_elements']
    share = lab.share_of_gain(merged, base, tuned, 'python')
    return share > 0.6 and changed < 0.2, {'share of gain': share, 'changed entries': changed}
