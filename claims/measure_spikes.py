METHODS = ['measure mp']
PAPER = 'Marchenko and Pastur 1967; CalculatedContent/WeightWatcher'
CLAIM = 'No direction of an initialisation stands out of the noise, and in a trained model dozens of every kind of matrix do.'
NEEDS = ['lm/base', 'lm/tiny-path']
KINDS = ['q', 'k', 'v', 'o', 'gate', 'up', 'down']


def measure(lab):
    start, trained = lab.measured([lab.model('lm/tiny-path/step-0000')], 'mp'), lab.measured([lab.model('lm/base')], 'mp')
    numbers = {'largest median at the start': max(lab.median(start, 'mp.spikes', [k]) for k in KINDS),
               'least median of the trained': min(lab.median(trained, 'mp.spikes', [k]) for k in KINDS)}
    return numbers['largest median at the start'] == 0 and numbers['least median of the trained'] >= 24, numbers
