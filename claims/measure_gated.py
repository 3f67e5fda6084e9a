METHODS = ['measure gated']
PAPER = 'github.com/sjgerstner/RW_functionalities'
CLAIM = 'Neurons strengthen what they read in the first layers and no longer in the last: the mean cosine of reading and writing falls below a fifth, in layers that left chance.'
NEEDS = ['lm/base']


def measure(lab):
    document = lab.measured([lab.model('lm/base')], 'gated')
    means, outside = lab.layers(document, 'gated.mean.io'), lab.layers(document, 'gated.outside_analytic.io')
    numbers = {'mean cosine, first layer': means[0], 'last': means[-1], 'least share outside the band of chance': min(outside)}
    return means[-1] < 0.2 * means[0] and min(outside) > 0.05, numbers
