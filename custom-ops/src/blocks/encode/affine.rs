//! What Q2_K and Q4_K share: groups of `x ≈ d·scale·q − dmin·minimum`, with small whole numbers
//! `q`, `scale` and `minimum`, and `d`, `dmin` common to a block.

use super::half;

/// How a format counts.
pub(super) struct Steps {
    /// The largest `q`.
    pub(super) levels: f32,
    /// The largest `scale` and `minimum`.
    pub(super) multiples: f32,
}

/// One block, encoded.
pub(super) struct Fit<const GROUPS: usize, const LEN: usize> {
    pub(super) d: [u8; 2],
    pub(super) dmin: [u8; 2],
    pub(super) scales: [u8; GROUPS],
    pub(super) mins: [u8; GROUPS],
    pub(super) q: [[u8; LEN]; GROUPS],
}

/// Values of a group with their weights, and the sums that no choice changes.
struct Group<'a, const LEN: usize> {
    x: &'a [f32; LEN],
    w: &'a [f32; LEN],
    sum_w: f32,
    sum_wx: f32,
    sum_wxx: f32,
}

/// Weighted sums over a group's `q`.
#[derive(Clone, Copy, Default)]
struct Sums {
    q: f32,
    qq: f32,
    xq: f32,
}

/// Rounds what is far below 2²² in magnitude, ties to even, on any machine's adder.
#[inline(always)]
fn round(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The `q` of a value.
#[inline(always)]
fn level(x: f32, inverse: f32, min: f32, levels: f32) -> f32 {
    let q = (x + min) * inverse;
    let q = if q > 0.0 { q } else { 0.0 };
    round(if q < levels { q } else { levels })
}

#[inline(always)]
fn sum(l: &[f32; 8]) -> f32 {
    (l[0] + l[4]) + (l[2] + l[6]) + ((l[1] + l[5]) + (l[3] + l[7]))
}

impl<'a, const LEN: usize> Group<'a, LEN> {
    #[inline(always)]
    fn new(x: &'a [f32; LEN], w: &'a [f32; LEN]) -> Self {
        let (mut sum_w, mut sum_wx, mut sum_wxx) = (0.0, 0.0, 0.0);
        for (x, w) in x.iter().zip(w) {
            sum_w += w;
            sum_wx += w * x;
            sum_wxx += w * x * x;
        }
        Self { x, w, sum_w, sum_wx, sum_wxx }
    }

    /// The sums over the best `q` for a scale and a minimum.
    #[inline(always)]
    fn sums(&self, scale: f32, min: f32, levels: f32) -> Sums {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut q = [0f32; LEN];
        for (q, x) in q.iter_mut().zip(self.x) {
            *q = level(*x, inverse, min, levels);
        }
        let mut lanes = [[0f32; 8]; 3];
        let q = q.as_chunks::<8>().0;
        for ((x, w), q) in self.x.as_chunks::<8>().0.iter().zip(self.w.as_chunks::<8>().0).zip(q) {
            let mut wq = [0f32; 8];
            for l in 0..8 {
                wq[l] = w[l] * q[l];
            }
            for l in 0..8 {
                lanes[0][l] += wq[l];
            }
            for l in 0..8 {
                lanes[1][l] += wq[l] * q[l];
            }
            for l in 0..8 {
                lanes[2][l] += wq[l] * x[l];
            }
        }
        let [q, qq, xq] = [sum(&lanes[0]), sum(&lanes[1]), sum(&lanes[2])];
        Sums { q, qq, xq }
    }

    /// `Σ w·(scale·q − min − x)²`.
    #[inline(always)]
    fn error(&self, s: Sums, scale: f32, min: f32) -> f32 {
        scale * (scale * s.qq - 2.0 * (s.xq + min * s.q))
            + min * (min * self.sum_w + 2.0 * self.sum_wx)
            + self.sum_wxx
    }

    /// The best scale and minimum for the `q` behind `s`, neither below zero.
    #[inline(always)]
    fn refit(&self, s: Sums) -> Option<(f32, f32)> {
        let determinant = self.sum_w * s.qq - s.q * s.q;
        if determinant > 1e-6 * self.sum_w * s.qq {
            let scale = (self.sum_w * s.xq - self.sum_wx * s.q) / determinant;
            let min = (s.q * s.xq - s.qq * self.sum_wx) / determinant;
            if scale > 0.0 && min >= 0.0 {
                return Some((scale, min));
            }
        }
        let scale = s.xq / s.qq;
        (s.qq > 0.0 && scale > 0.0).then_some((scale, 0.0))
    }

    /// The best scale and minimum that a search from several starts finds.
    #[inline(always)]
    fn search(&self, levels: f32) -> (f32, f32) {
        let low = self.x.iter().fold(0f32, |low, x| low.min(*x));
        let high = self.x.iter().fold(f32::MIN, |high, x| high.max(*x));
        if high <= low {
            return (0.0, -low);
        }
        let mut best = (f32::INFINITY, 0.0, -low);
        // Few levels gain from cutting off the ends, many hardly do.
        for cut in 0..STARTS {
            let inside = (high - low) * (1.0 - 0.5 * cut as f32 / (levels * STARTS as f32 / 3.0));
            let middle = 0.5 * (high + low);
            let mut scale = inside / levels;
            let mut min = (0.5 * inside - middle).max(0.0);
            for _ in 0..ROUNDS {
                let sums = self.sums(scale, min, levels);
                let error = self.error(sums, scale, min);
                if error < best.0 {
                    best = (error, scale, min);
                }
                let Some(better) = self.refit(sums) else { break };
                (scale, min) = better;
                let error = self.error(sums, scale, min);
                if error < best.0 {
                    best = (error, scale, min);
                }
            }
        }
        (best.1, best.2)
    }
}

const STARTS: usize = 6;
const ROUNDS: usize = 4;
/// Times that the multiples are chosen anew and `d`, `dmin` fitted to them.
const PASSES: usize = 4;

/// Encodes one block.
#[inline(always)]
pub(super) fn encode<const GROUPS: usize, const LEN: usize>(
    x: &[[f32; LEN]; GROUPS],
    w: &[[f32; LEN]; GROUPS],
    steps: &Steps,
) -> Fit<GROUPS, LEN> {
    let groups: [_; GROUPS] = std::array::from_fn(|g| Group::new(&x[g], &w[g]));
    let mut targets = [(0f32, 0f32); GROUPS];
    for (target, group) in targets.iter_mut().zip(&groups) {
        *target = group.search(steps.levels);
    }
    let most = |pick: fn(&(f32, f32)) -> f32| targets.iter().map(pick).fold(0f32, f32::max);
    let mut d = half(most(|t| t.0) / steps.multiples);
    let mut dmin = half(most(|t| t.1) / steps.multiples);

    let mut best = (f64::INFINITY, d, dmin, [0f32; GROUPS], [0f32; GROUPS]);
    for _ in 0..PASSES {
        let (mut scales, mut mins) = ([0f32; GROUPS], [0f32; GROUPS]);
        let mut total = 0f64;
        let mut fit = [0f64; 5];
        for (g, group) in groups.iter().enumerate() {
            let (a, b, s, error) = choose(group, targets[g], d.1, dmin.1, steps);
            (scales[g], mins[g]) = (a, b);
            total += f64::from(error);
            let (a, b) = (f64::from(a), f64::from(b));
            fit[0] += a * a * f64::from(s.qq);
            fit[1] += a * b * f64::from(s.q);
            fit[2] += b * b * f64::from(group.sum_w);
            fit[3] += a * f64::from(s.xq);
            fit[4] += b * f64::from(group.sum_wx);
        }
        if total < best.0 {
            best = (total, d, dmin, scales, mins);
        }
        // x ≈ d·u − dmin·v with u = scale·q, v = minimum: two equations.
        let [uu, uv, vv, xu, xv] = fit;
        let determinant = uu * vv - uv * uv;
        let (new_d, new_dmin) = if determinant > 1e-9 * uu * vv {
            ((xu * vv - xv * uv) / determinant, (xu * uv - xv * uu) / determinant)
        } else if uu > 0.0 {
            (xu / uu, 0.0)
        } else {
            break;
        };
        if new_d <= 0.0 || new_dmin < 0.0 {
            break;
        }
        let next = (half(new_d as f32), half(new_dmin as f32));
        if next == (d, dmin) {
            break;
        }
        (d, dmin) = next;
    }

    let (_, d, dmin, scales, mins) = best;
    let q = std::array::from_fn(|g| {
        let (scale, min) = (d.1 * scales[g], dmin.1 * mins[g]);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        x[g].map(|x| level(x, inverse, min, steps.levels) as u8)
    });
    Fit { d: d.0, dmin: dmin.0, scales: scales.map(|a| a as u8), mins: mins.map(|b| b as u8), q }
}

/// The best multiples around where the group's own scale and minimum would be.
#[inline(always)]
fn choose<const LEN: usize>(
    group: &Group<LEN>,
    (scale, min): (f32, f32),
    d: f32,
    dmin: f32,
    steps: &Steps,
) -> (f32, f32, Sums, f32) {
    let multiple = |value: f32, unit: f32| {
        let multiple = if unit > 0.0 { round((value / unit).min(steps.multiples)) } else { 0.0 };
        [multiple - 1.0, multiple, multiple + 1.0]
    };
    let mut best = (0.0, 0.0, Sums::default(), f32::INFINITY);
    for a in multiple(scale, d) {
        for b in multiple(min, dmin) {
            if a < 0.0 || b < 0.0 || a > steps.multiples || b > steps.multiples {
                continue;
            }
            let sums = group.sums(d * a, dmin * b, steps.levels);
            let error = group.error(sums, d * a, dmin * b);
            if error < best.3 {
                best = (a, b, sums, error);
            }
        }
    }
    best
}
