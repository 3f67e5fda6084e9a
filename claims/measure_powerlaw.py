METHODS = ['measure powerlaw', 'measure random']
PAPER = 'arXiv:2002.06716'
CLAIM = "Training makes the spectra of layers power laws: in most matrices the fit is twice as good as on the matrix's own elements permuted, in none of an initialisation."
NEEDS = ['lm/base', 'lm/tiny-path']


def measure(lab):
    def share(model):
        values = [t['values'] for t in lab.measured([lab.model(model)], 'powerlaw,random')['models'][0]['tensors'] if 'random.D_permuted' in t['values']]
        return sum(v['powerlaw.D'] < 0.5 * v['random.D_permuted'] for v in values) / len(values)

    numbers = {'share, trained': share('lm/base'), 'share, initialisation': share('lm/tiny-path/step-0000')}
    return numbers['share, trained'] > 0.5 and numbers['share, initialisation'] == 0, numbers
