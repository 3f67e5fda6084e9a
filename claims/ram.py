METHODS = ['ram', 'ramplus_tl']
PAPER = 'arXiv:2601.13572'
CLAIM = 'ram of two fine-tunes loses no more of either gain than averaging them.'
NEEDS = ['lm/base', 'lm/german', 'lm/python', 'text/held']


def measure(lab):
    base, german, python = (lab.model('lm/' + m) for m in ('base', 'german', 'python'))
    def least(out):
        return min(lab.share_of_gain(out, base, german, 'german'), lab.share_of_gain(out, base, python, 'python'))
    ram = least(lab.merge('ram', [german, python], base=base))
    mean = least(lab.merge('linear', [(german, {'weight': 1.0}), (python, {'weight': 1.0})]))
    return ram >= mean, {'least share of gain, ram': ram, 'mean': mean}
