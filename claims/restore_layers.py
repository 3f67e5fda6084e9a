METHODS = ['restore_layers']
PAPER = 'arXiv:2602.06665'
CLAIM = 'Putting back some interval of at most 3 layers keeps more than 70 % of the gain while English loss falls.'
NEEDS = ['lm/base', 'lm/shakespeare', 'text/held']


def measure(lab):
    base, tuned = lab.model('lm/base'), lab.model('lm/shakespeare')
    best, where = -1.0, ''
    for first in range(0, 6):
        for last in range(first, min(first + 3, 6)):
            out = lab.merge('restore_layers', [tuned], base=base, parameters={'first_layer': first, 'last_layer': last})
            if lab.share_of_gain(out, base, tuned, 'shakespeare') > 0.7:
                back = (lab.loss(tuned, 'english') - lab.loss(out, 'english')) / (lab.loss(tuned, 'english') - lab.loss(base, 'english'))
                if back > best:
                    best, where = back, f'{first}..{last}'
    return best > 0.3, {'English loss regained at > 70 % of the gain': best, 'layers': where}
