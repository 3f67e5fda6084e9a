METHODS = ['measure ranks', 'measure weightwatcher']
PAPER = 'CalculatedContent/WeightWatcher'
CLAIM = 'Training concentrates q and k: their median stable rank falls below half of what it was at initialisation.'
NEEDS = ['lm/tiny-path']


def measure(lab):
    document = lab.measured([lab.model('lm/tiny-path/step-0000'), lab.model('lm/tiny-path/step-0700')], 'ranks')
    numbers = {f'median stable rank, {when}': lab.median(document, 'ranks.stable_rank', ['q', 'k'], m) for m, when in enumerate(('step 0', 'step 700'))}
    return numbers['median stable rank, step 700'] < 0.5 * numbers['median stable rank, step 0'], numbers
