METHODS = ['measure utilized_rank']
PAPER = 'arXiv:2407.04797'
CLAIM = 'Inputs and weights together use less than half of the dimensions of the layers (99 % of the energy).'
NEEDS = ['lm/base', 'text/held']


def measure(lab):
    document = lab.measured([lab.model('lm/base')], 'utilized_rank', '--text', str(lab.text('english')))
    mean = document['models'][0]['model']['utilized_rank.mean_utilisation.0.99']
    numbers = {'mean utilisation': mean}
    numbers.update({f'median, {k}': lab.median(document, 'utilized_rank.0.99.utilisation', [k]) for k in ('q', 'o', 'down')})
    return mean < 0.5, numbers
