METHODS = ['measure heads']
PAPER = 'arXiv:2605.20441'
CLAIM = 'Heads are alike at initialisation (cosine above 0.9 in every layer) and part in training (below 0.8 in every layer).'
NEEDS = ['lm/tiny-path', 'text/held']


def measure(lab):
    models = [lab.model('lm/tiny-path/step-0000'), lab.model('lm/tiny-path/step-0700')]
    document = lab.measured(models, 'heads', '--text', str(lab.text('english')))
    start, end = (lab.layers(document, 'heads.without_first_two.head_cosine', m) for m in (0, 1))
    return min(start) > 0.9 and max(end) < 0.8, {'least cosine, step 0': min(start), 'largest, step 700': max(end)}
