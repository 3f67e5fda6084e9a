METHODS = ['measure w_pca']
PAPER = 'github.com/ra225/W-PCA'
CLAIM = 'Where the feed-forward layers have more principal components the model is better: along a training run their number orders models as the loss does (tau above 0.5).'
NEEDS = ['lm/tiny-path', 'text/held']
STEPS = (0, 50, 150, 350, 700)


def measure(lab):
    """The proxy itself ranks architectures at random initialisation; of several architectures no trained models are at hand."""
    models = [lab.model(f'lm/tiny-path/step-{step:04}') for step in STEPS]
    losses = [lab.loss(model, 'english') for model in models]
    found = lab.measured(models, 'w_pca', '--text', str(lab.text('english')))['models']
    numbers, taus = {}, {}
    for share in ('0.99', '0.9'):
        counts = [sum(lab.layers({'models': [m]}, f'w_pca.components.{share}')) for m in found]
        pairs = [(a, b) for a in range(len(STEPS)) for b in range(a)]
        sign = lambda x: (x > 0) - (x < 0)
        taus[share] = sum(sign(counts[a] - counts[b]) * sign(losses[b] - losses[a]) for a, b in pairs) / len(pairs)
        numbers[f'components, {share}'] = ' '.join(f'{int(c)}' for c in counts)
        numbers[f'tau, {share}'] = taus[share]
    return taus['0.99'] > 0.5, {'loss': ' '.join(f'{x:.3f}' for x in losses), **numbers}
