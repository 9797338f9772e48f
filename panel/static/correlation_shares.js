// What each sample adds to a cross-correlation; see `correlate` in analysis/cross_correlation.py.

/**
 * Shares of samples in the correlation of a component at t with another at t + lag: they add up to
 * the correlation of the group.
 *
 * Arrays have one value per row (a step of a sample): `sampleOf` counts samples from 0, `steps`,
 * `done`, and the components `first` and `later`. `deviations` are the standard deviations of both,
 * `clip` the number of them at which they are clipped (0 for not), `members` says of each sample
 * whether it is in the group.
 */
export function correlationShares({ sampleOf, steps, done, first, later }, settings) {
  const { deviations, clip, members, lag, heedsEnds } = settings;
  const lengths = lengthsOf(sampleOf, steps, done, members.length, heedsEnds);
  const numSteps = Math.max(0, ...lengths);
  const rows = { sampleOf, steps, lengths, numSteps };
  const [x, y] = [first, later].map((values, index) =>
    centred(standardised(values, rows, deviations[index], clip), rows, members));
  const shares = new Float64Array(members.length);
  let [xx, yy] = [0, 0];
  members.forEach((isMember, sample) => {
    if (!isMember) return;
    for (let step = 0; step + lag < lengths[sample]; step += 1) {
      const [at, after] = [sample * numSteps + step, sample * numSteps + step + lag];
      shares[sample] += x[at] * y[after];
      xx += x[at] ** 2;
      yy += y[after] ** 2;
    }
  });
  const scale = Math.sqrt(xx * yy);
  return shares.map((share) => share / scale);
}

/** Steps of each sample until its episode ends, that one included. */
function lengthsOf(sampleOf, steps, done, numSamples, heedsEnds) {
  const lengths = new Int32Array(numSamples);
  const ends = new Int32Array(numSamples).fill(2 ** 31 - 1);
  sampleOf.forEach((sample, row) => {
    if (sample < 0) return;
    lengths[sample] = Math.max(lengths[sample], steps[row] + 1);
    if (done[row] && heedsEnds) ends[sample] = Math.min(ends[sample], steps[row] + 1);
  });
  return lengths.map((length, sample) => Math.min(length, ends[sample]));
}

/** (sample, step) in standard deviations from the mean over all samples, 0 after the end. */
function standardised(values, { sampleOf, steps, lengths, numSteps }, deviation, clip) {
  const isValid = (row) => sampleOf[row] >= 0 && steps[row] < lengths[sampleOf[row]];
  let [sum, count] = [0, 0];
  values.forEach((value, row) => { if (isValid(row)) { sum += value; count += 1; } });
  const table = new Float64Array(lengths.length * numSteps);
  values.forEach((value, row) => {
    if (!isValid(row)) return;
    const scaled = (value - sum / count) / deviation;
    table[sampleOf[row] * numSteps + steps[row]] =
      clip > 0 ? Math.min(Math.max(scaled, -clip), clip) : scaled;
  });
  return table;
}

/** The same less the mean of the group at each step. */
function centred(table, { lengths, numSteps }, members) {
  for (let step = 0; step < numSteps; step += 1) {
    const present = [...members.keys()].filter((sample) => members[sample] && step < lengths[sample]);
    const mean = present.reduce((sum, sample) => sum + table[sample * numSteps + step], 0) /
      Math.max(present.length, 1);
    for (const sample of present) table[sample * numSteps + step] -= mean;
  }
  return table;
}
