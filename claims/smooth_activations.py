METHODS = ['smooth', 'eval --activation-ranges']
PAPER = 'arXiv:2211.10438'
CLAIM = ('With four outlying channels behind each norm, weights and activations of 8 bits, one static range a layer, lose less than 1 % of perplexity after '
         'smoothing and more than that without.')
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    loud = lab.loud('lm/base', 256)
    static = ('--activations', 'int8', '--activation-ranges', 1, '--calibration', lab.zoo / 'text/calibration.txt')
    numbers, lost = {}, {}
    for name, model in (('outliers', loud), ('without', 'lm/base')):
        for method in ('rtn', 'smooth'):
            made = lab.quantized(method, '--bits', 8, '--group', 0, model=model)
            for kind, rounding in (('static', static), ('a token', ('--activations', 'int8'))):
                lost[name, method, kind] = numbers[f'nats lost, {name}, {method}, {kind}'] = lab.lost(made, rounding=rounding)
    bare, smoothed = lost['outliers', 'rtn', 'static'], lost['outliers', 'smooth', 'static']
    return bare[0] - bare[1] > 0.01 and smoothed[0] + smoothed[1] < 0.01, numbers
