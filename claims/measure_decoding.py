METHODS = ['measure decoding', 'measure agreement']
PAPER = 'LM-head decoding of neurons'
CLAIM = 'More than three in four up neurons decode to the same token in a base and its fine-tune, and fewer the further the text is from the base.'
NEEDS = ['lm/base', 'lm/shakespeare', 'lm/python']


def measure(lab):
    numbers = {}
    for name in ('shakespeare', 'python'):
        pair = lab.measured([lab.model('lm/' + name)], 'agreement', '--base', lab.model('lm/base'))['comparisons'][0]
        shares = [v for b in pair['blocks'] for k, v in b['values'].items() if k.startswith('agreement.up')]
        numbers[f'least share, {name}'], numbers[f'largest, {name}'] = min(shares), max(shares)
    return min(numbers['least share, shakespeare'], numbers['least share, python']) > 0.75 and numbers['largest, python'] < numbers['least share, shakespeare'], numbers
