METHODS = ['measure phases', 'measure barrier']
PAPER = 'arXiv:2107.11228'
CLAIM = 'Along a training run models pass from large loss (I, II) to small loss without a barrier between neighbours (IV), never through III.'
NEEDS = ['lm/tiny-path', 'text/held']


def measure(lab):
    models = [lab.model(f'lm/tiny-path/step-{s}') for s in ('0000', '0050', '0150', '0350', '0700')]
    document = lab.measured(models, 'phases', '--text', str(lab.text('english')), '--tokens', '2048')
    path = [c for c in document['comparisons'] if c['kind'] == 'path']
    phases = [c['labels']['phases.phase'] for c in path]
    return phases[0] in ('I', 'II') and phases[-1].startswith('IV') and 'III' not in phases, {
        'phases': ' '.join(phases), 'least connectivity': min(c['total']['phases.connectivity'] for c in path)}
