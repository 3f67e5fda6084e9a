METHODS = ['measure conditioning']
PAPER = 'arXiv:2409.03424'
CLAIM = 'Scaling rows to length 1 improves the condition of every matrix of a trained model.'
NEEDS = ['lm/base']


def measure(lab):
    """Of the paper only the conditioner: whether training with it is faster takes training."""
    tensors = [t for t in lab.measured([lab.model('lm/base')], 'conditioning')['models'][0]['tensors'] if 'conditioning.after' in t['values']]
    factors = sorted(t['values']['conditioning.before'] / t['values']['conditioning.after'] for t in tensors)
    numbers = {'matrices': len(tensors), 'improved': sum(f > 1 for f in factors), 'least factor': factors[0], 'median factor': factors[len(factors) // 2],
               'largest factor': factors[-1]}
    for kind in ('q', 'v', 'up', 'down'):
        own = [t['values'] for t in tensors if t['role'] == kind]
        numbers[f'worst condition, {kind}, before and after'] = ' '.join(f"{max(v[f'conditioning.{when}'] for v in own):.4g}" for when in ('before', 'after'))
    return factors[0] > 1, numbers
