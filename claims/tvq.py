METHODS = ['tvq']
PAPER = 'Task Vector Quantization for Memory-Efficient Model Merging'
CLAIM = 'Quantizing a task vector to 4 bits loses less than 3 % of its gain.'
NEEDS = ['lm/base', 'lm/german', 'text/held']


def measure(lab):
    base, german = lab.model('lm/base'), lab.model('lm/german')
    shares = {}
    for bits in (4, 2):
        shares[f'share of gain, {bits} bits'] = lab.share_of_gain(lab.merge('tvq', [(german, {'weight': 1.0})], base=base, parameters={'bits': bits}), base, german, 'german')
    return shares['share of gain, 4 bits'] > 0.97, shares
