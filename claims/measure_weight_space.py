METHODS = ['measure weight_space']
PAPER = 'column-pivoted QR; half of the rows generate the rest'
CLAIM = 'Half of the rows of a feed-forward matrix generate the other half within a tenth of its norm.'
NEEDS = ['lm/base']


def measure(lab):
    tensors = [t['values'] for t in lab.measured([lab.model('lm/base')], 'weight_space')['models'][0]['tensors'] if t['role'] in ('gate', 'up', 'down')]
    rows, bound = (max(t[f'weight_space.k.128.{side}'] for t in tensors) for side in ('row', 'svd'))
    return rows < 0.1, {'largest relative error, rows': rows, 'by the singular values, at best': bound}
