// The random numbers of torch: `normals(seed, n)` are those of torch.randn(n) with a CPU generator of this seed, so that
// a seed draws the same face here and in Python. Mersenne Twister (mt19937), then Box and Muller in groups of sixteen.

const SIZE = 624;
const SHIFT = 397;

class Twister {
  constructor(seed) {
    this.state = new Uint32Array(SIZE);
    this.next = SIZE;
    this.state[0] = seed >>> 0;
    for (let i = 1; i < SIZE; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
  }

  word() {
    if (this.next === SIZE) this.refill();
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  refill() {
    const s = this.state;
    for (let i = 0; i < SIZE; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % SIZE] & 0x7fffffff);
      s[i] = s[(i + SHIFT) % SIZE] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }
}

/** Returns n numbers, n a multiple of 16, as torch.randn draws them. */
export function normals(seed, n) {
  if (n % 16) throw new RangeError(`${n} numbers: give a multiple of 16`);
  const twister = new Twister(seed);
  const numbers = Float32Array.from({ length: n }, () => (twister.word() & 0xffffff) / 2 ** 24);
  for (let start = 0; start < n; start += 16) {
    for (let i = start; i < start + 8; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - numbers[i]));
      const angle = 2 * Math.PI * numbers[i + 8];
      numbers[i] = radius * Math.cos(angle);
      numbers[i + 8] = radius * Math.sin(angle);
    }
  }
  return numbers;
}
