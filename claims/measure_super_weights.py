METHODS = ['measure super_weights']
PAPER = 'arXiv:2411.07191'
CLAIM = 'A trained language model has at least one weight whose loss costs it more than all else: a super weight.'
NEEDS = ['lm/base', 'text/held']


def measure(lab):
    document = lab.measured([lab.model('lm/base')], 'super_weights', '--text', str(lab.text('english')))
    costs = lab.layers(document, 'super_weights.loss_change')
    count = document['models'][0]['model']['super_weights.count']
    return count >= 1 and max(costs) > 1, {'super weights': count, 'what losing the likeliest single weight costs, nats': max(costs)}
