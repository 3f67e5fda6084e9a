METHODS = ['measure language_geometry']
PAPER = 'arXiv:2508.11676'
CLAIM = 'By the weights that matter for each text, families come out: German is nearest to French, the Bible to Shakespeare, Python to C.'
NEEDS = ['lm/base', 'text/held']
TEXTS = ['english', 'german', 'french', 'bible', 'shakespeare', 'python', 'kernel']


def measure(lab):
    options = [o for t in TEXTS for o in ('--text', str(lab.text(t)))]
    model = lab.measured([lab.model('lm/base')], 'language_geometry', *options)['models'][0]['model']
    distance = lambda a, b: model[f'language_geometry.0.5.hamming.{min(a, b)}.{max(a, b)}']
    nearest = {t: TEXTS[min((b for b in range(len(TEXTS)) if b != a), key=lambda b: distance(a, b))] for a, t in enumerate(TEXTS)}
    numbers = {'floor': model['language_geometry.floor'], 'german to french': distance(1, 2), 'bible to shakespeare': distance(3, 4), 'python to kernel': distance(5, 6),
               'nearest to python': nearest['python']}
    return nearest['german'] == 'french' and nearest['bible'] == 'shakespeare' and nearest['python'] == 'kernel', numbers
