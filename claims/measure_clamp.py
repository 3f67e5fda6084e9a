METHODS = ['measure clamp']
PAPER = 'LM-head decoding of neurons'
CLAIM = 'Holding the neuron of each layer that decodes most clearly at the largest value it takes makes its token likelier.'
NEEDS = ['lm/base', 'text/held']


def measure(lab):
    model = lab.measured([lab.model('lm/base')], 'clamp', '--text', str(lab.text('english')))['models'][0]['model']
    raised = [model[f'clamp.{c}.raised'] for c in range(model['clamp.count'])]
    return min(raised) > 0, {'layers': len(raised), 'raised': sum(r > 0 for r in raised), 'least, nats': min(raised), 'most, nats': max(raised)}
