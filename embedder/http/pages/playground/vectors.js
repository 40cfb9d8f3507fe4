/**
 * Vectors of norm 1, and what follows from them: cosines, nearest, groups, a map.
 *
 * Each cosine is worked out once, when the later of its two vectors arrives: 500 vectors of 1280 numbers take
 * 160 million multiplications in all, spread over their arrival.
 */

/** Power iteration may take so many steps, each of a product with the matrix of all pairs. */
const MOST_STEPS = 2000;
const MOST_PRODUCTS = 50e6;

export class Vectors {
  #values = new Float32Array(0);
  /** The cosines of each with itself and those before it, one row after the other: 1 + 2 + 3 + ... numbers. */
  #cosines = new Float32Array(0);
  #directions = [];

  count = 0;
  /** Numbers of a vector; 0 before the first. */
  dimension = 0;

  /** Takes a vector, as a list of numbers, and gives its place. Throws where it has another length than the others. */
  add(numbers) {
    if (!this.count) this.dimension = numbers.length;
    if (numbers.length !== this.dimension) throw new RangeError(`${numbers.length} numbers, not ${this.dimension}`);
    const place = this.count;
    this.#values = grown(this.#values, (place + 1) * this.dimension);
    this.#cosines = grown(this.#cosines, start(place + 1));
    this.#values.set(numbers, place * this.dimension);
    const one = this.#vector(place);
    for (let other = 0; other <= place; other++) {
      const two = this.#vector(other);
      let sum = 0;
      for (let i = 0; i < one.length; i++) sum += one[i] * two[i];
      this.#cosines[start(place) + other] = sum;
    }
    this.count += 1;
    return place;
  }

  #vector(place) {
    return this.#values.subarray(place * this.dimension, (place + 1) * this.dimension);
  }

  cosine(one, two) {
    return this.#cosines[one > two ? start(one) + two : start(two) + one];
  }

  /** The smallest cosine of two; 1 where there are not two. */
  lowest() {
    let lowest = 1;
    for (let i = 0; i < start(this.count); i++) lowest = Math.min(lowest, this.#cosines[i]);
    return lowest;
  }

  /** Up to `most` others as `{place, cosine}`, nearest first; of equals the earlier first. */
  nearest(place, most) {
    const found = [];
    for (let other = 0; other < this.count; other++) {
      if (other === place) continue;
      const cosine = this.cosine(place, other);
      if (found.length === most && cosine <= found[most - 1].cosine) continue;
      let at = found.length;
      while (at > 0 && found[at - 1].cosine < cosine) at -= 1;
      found.splice(at, 0, { place: other, cosine });
      found.length = Math.min(found.length, most);
    }
    return found;
  }

  /**
   * Groups of two and more, as lists of places: each has a cosine of `threshold` or more with another of its group.
   * The largest first; of equals the one that begins earlier.
   */
  groups(threshold) {
    const parents = Int32Array.from({ length: this.count }, (_, place) => place);
    const root = (place) => {
      while (parents[place] !== place) place = parents[place] = parents[parents[place]];
      return place;
    };
    for (let one = 0; one < this.count; one++) {
      for (let two = 0; two < one; two++) {
        if (this.cosine(one, two) >= threshold) parents[root(one)] = root(two);
      }
    }
    const groups = new Map();
    for (let place = 0; place < this.count; place++) {
      const members = groups.get(root(place));
      if (members) members.push(place);
      else groups.set(root(place), [place]);
    }
    return [...groups.values()].filter((group) => group.length > 1).sort((a, b) => b.length - a.length);
  }

  /**
   * The first two principal components: `{x, y, share}`, two Float64Array of `count`, and how much of the variance
   * the two have, 0 to 1.
   *
   * By power iteration on the centred matrix of all pairs, whose eigenvectors they are, up to their length
   * (https://en.wikipedia.org/wiki/Kernel_principal_component_analysis). It goes on from the last map's directions,
   * so that a map that grows does not turn over.
   */
  map() {
    const n = this.count;
    const means = new Float64Array(n);
    let trace = 0;
    for (let one = 0; one < n; one++) {
      for (let two = 0; two < n; two++) means[one] += this.cosine(one, two) / n;
    }
    const mean = sum(means) / (n || 1);
    for (let one = 0; one < n; one++) trace += this.cosine(one, one) - 2 * means[one] + mean;
    const axes = [];
    for (const number of [0, 1]) {
      axes.push(this.#direction(number, means, mean, axes.map((axis) => axis.direction)));
    }
    this.#directions = axes.map((axis) => axis.direction);
    const [x, y] = axes.map(({ direction, size }) => direction.map((value) => value * Math.sqrt(Math.max(0, size))));
    const share = trace > 0 ? Math.min(1, Math.max(0, axes[0].size + axes[1].size) / trace) : 0;
    return { x, y, share };
  }

  /** The direction of the greatest variance that is at right angles to `others`: of norm 1, and the variance. */
  #direction(number, means, mean, others) {
    const n = this.count;
    const last = this.#directions[number] ?? [];
    // Any start will do that no two pictures share; the same each time, so that the same pictures have the same map.
    let direction = Float64Array.from({ length: n }, (_, i) => last[i] ?? Math.sin(1 + number + i * (7 + number)) * 0.1);
    settle(direction, others);
    let size = 0;
    const steps = Math.min(MOST_STEPS, Math.max(20, MOST_PRODUCTS / (n * n)));
    for (let step = 0; step < steps; step++) {
      const next = this.#product(direction, means, mean);
      size = settle(next, others);
      let change = 0;
      for (let i = 0; i < n; i++) change = Math.max(change, Math.abs(next[i] - direction[i]));
      direction = next;
      if (change < 1e-7) break;
    }
    return { direction, size };
  }

  /** The centred matrix of all pairs times `x`. */
  #product(x, means, mean) {
    const n = this.count;
    const y = new Float64Array(n);
    let place = 0;
    for (let one = 0; one < n; one++) {
      for (let two = 0; two < one; two++) {
        const cosine = this.#cosines[place++];
        y[one] += cosine * x[two];
        y[two] += cosine * x[one];
      }
      y[one] += this.#cosines[place++] * x[one];
    }
    const total = sum(x);
    let weighted = 0;
    for (let i = 0; i < n; i++) weighted += means[i] * x[i];
    for (let i = 0; i < n; i++) y[i] += (mean - means[i]) * total - weighted;
    return y;
  }
}

/** Where the row of a place begins among the cosines. */
function start(place) {
  return (place * (place + 1)) / 2;
}

/** `array`, or a copy with room for `length` numbers and as many again. */
function grown(array, length) {
  if (array.length >= length) return array;
  const larger = new Float32Array(2 * length);
  larger.set(array);
  return larger;
}

function sum(numbers) {
  let total = 0;
  for (const number of numbers) total += number;
  return total;
}

/** Makes `direction` one at right angles to `others` and of norm 1, in place; gives the norm that it had. */
function settle(direction, others) {
  for (const other of others) {
    let along = 0;
    for (let i = 0; i < direction.length; i++) along += direction[i] * other[i];
    for (let i = 0; i < direction.length; i++) direction[i] -= along * other[i];
  }
  const norm = Math.sqrt(sum(direction.map((value) => value * value)));
  if (norm > 0) for (let i = 0; i < direction.length; i++) direction[i] /= norm;
  return norm;
}
