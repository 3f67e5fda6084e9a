METHODS = ['measure spectral_alignment']
PAPER = 'arXiv:2510.04202'
CLAIM = 'In a healthy model the inputs of every layer lie on both sides of its top singular direction (diversity above 0.3).'
NEEDS = ['lm/base', 'text/held']


def measure(lab):
    document = lab.measured([lab.model('lm/base')], 'spectral_alignment', '--text', str(lab.text('english')))
    numbers = {f'median diversity, {k}': lab.median(document, 'spectral_alignment.diversity', [k]) for k in ('q', 'k', 'v', 'o', 'gate', 'up', 'down')}
    least = min(t['values']['spectral_alignment.diversity'] for t in document['models'][0]['tensors'] if 'spectral_alignment.diversity' in t['values'])
    return least > 0.3, {'least diversity': least, **numbers}
