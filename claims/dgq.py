METHODS = ['eval --activation-ranges', 'eval --attention-shares']
PAPER = 'github.com/ugonfor/DGQ'
CLAIM = ('Eight groups of channels more than halve what static activations of 6 bits cost against one range for all, and powers of two at most halve what '
         'even steps cost for 4-bit shares of attention.')
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    base = lab.model('lm/base')
    numbers = {}

    def static(bits, ranges):
        return ('--activations', f'int{bits}', '--activation-ranges', ranges, '--calibration', lab.zoo / 'text/calibration.txt')

    for bits in (6, 4):
        for ranges in (1, 8):
            numbers[f'nats lost, {bits} bits, ranges {ranges}'] = lab.lost(base, rounding=static(bits, ranges))
    groups = lab.lost(base, of=0.5, less=base, rounding=static(6, 8), less_rounding=static(6, 1))
    steps, powers = ('--attention-shares', 'int4'), ('--attention-shares', 'log4')
    numbers['shares in even steps'], numbers['powers of two'] = lab.lost(base, rounding=steps), lab.lost(base, rounding=powers)
    shares = lab.lost(base, of=0.5, less=base, rounding=powers, less_rounding=steps)
    numbers['6 bits, 8 ranges less half of 1'], numbers['powers of two less half of even steps'] = groups, shares
    return groups[0] + groups[1] < 0 and shares[0] + shares[1] < 0, numbers
