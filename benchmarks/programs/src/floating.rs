//! Floating-point work, one number at a time.

use std::arch::asm;
use std::hint::black_box;
use std::io;

use crate::catalogue::{Setting, Work};
use crate::data::{Random, checksum_of_floats, mix};

const SIDE: usize = 32;

fn multiply(a: &[f64], b: &[f64], product: &mut [f64]) {
    for row in 0..SIDE {
        for column in 0..SIDE {
            // The order of a sum of floating-point numbers is fixed: no compiler vectorises it.
            let mut sum = 0.0;
            for index in 0..SIDE {
                sum += a[row * SIDE + index] * b[index * SIDE + column];
            }
            product[row * SIDE + column] = sum;
        }
    }
}

/// The product of two matrices of doubles.
pub(crate) fn matrix(_: &Setting) -> io::Result<Work> {
    let mut random = Random::new(4);
    let mut numbers = || -> Vec<f64> { (0..SIDE * SIDE).map(|_| random.unit()).collect() };
    let (a, b) = (numbers(), numbers());
    let mut product = vec![0.0; SIDE * SIDE];
    Ok(Box::new(move |operations| {
        for _ in 0..operations {
            multiply(black_box(&a), black_box(&b), black_box(&mut product));
        }
        Ok(checksum_of_floats(&product))
    }))
}

/// A body: position, velocity, mass.
#[derive(Debug, Clone, Copy)]
struct Body {
    position: [f64; 3],
    velocity: [f64; 3],
    mass: f64,
}

fn bodies() -> [Body; 5] {
    let mut random = Random::new(5);
    let mut vector = |scale: f64| std::array::from_fn(|_| (random.unit() - 0.5) * scale);
    std::array::from_fn(|index| Body {
        position: if index == 0 { [0.0; 3] } else { vector(60.0) },
        velocity: if index == 0 { [0.0; 3] } else { vector(4.0) },
        mass: if index == 0 {
            39.5
        } else {
            0.01 / index as f64
        },
    })
}

/// Moves all bodies by a time step under their gravity.
fn advance(bodies: &mut [Body; 5], step: f64) {
    for first in 0..bodies.len() {
        for second in first + 1..bodies.len() {
            let (a, b) = (bodies[first], bodies[second]);
            let distance: [f64; 3] = std::array::from_fn(|i| a.position[i] - b.position[i]);
            let square: f64 = distance.iter().map(|d| d * d).sum();
            let factor = step / (square * square.sqrt());
            for (i, d) in distance.iter().enumerate() {
                bodies[first].velocity[i] -= d * b.mass * factor;
                bodies[second].velocity[i] += d * a.mass * factor;
            }
        }
    }
    for body in bodies {
        for (position, velocity) in body.position.iter_mut().zip(body.velocity) {
            *position += step * velocity;
        }
    }
}

/// A planetary system.
pub(crate) fn n_body(_: &Setting) -> io::Result<Work> {
    let mut bodies = bodies();
    Ok(Box::new(move |operations| {
        for _ in 0..operations * 100 {
            advance(black_box(&mut bodies), 0.001);
        }
        Ok(bodies
            .iter()
            .fold(0, |sum, body| mix(sum, checksum_of_floats(&body.position))))
    }))
}

/// Steps of the logistic map x = r x (1 - x) in extended precision; `sum` collects
/// sqrt(x) + r / x.
fn logistic(steps: u32, r: f64, x: &mut f64, sum: &mut f64) {
    // SAFETY: reads and writes only the two numbers given; leaves the register stack empty, as it
    // found it. `steps` is not 0.
    unsafe {
        asm!(
            "fld qword ptr [{sum}]",
            "fld qword ptr [{r}]",
            "fld qword ptr [{x}]",
            "2:",
            "fld1",
            "fsub st(0), st(1)",
            "fmulp st(1), st(0)",
            "fmul st(0), st(1)",
            "fld st(0)",
            "fsqrt",
            "faddp st(3), st(0)",
            "fld st(1)",
            "fdiv st(0), st(1)",
            "faddp st(3), st(0)",
            "dec {steps:e}",
            "jnz 2b",
            "fstp qword ptr [{x}]",
            "fstp st(0)",
            "fstp qword ptr [{sum}]",
            sum = in(reg) sum,
            r = in(reg) &r,
            x = in(reg) x,
            steps = inout(reg) steps => _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack),
        );
    }
}

/// The x87 unit.
pub(crate) fn x87(_: &Setting) -> io::Result<Work> {
    let (mut x, mut sum) = (0.3, 0.0);
    Ok(Box::new(move |operations| {
        for _ in 0..operations {
            logistic(256, 3.7, &mut x, &mut sum);
        }
        Ok(checksum_of_floats(&[x, sum]))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_with_the_identity_is_the_matrix() {
        let matrix: Vec<f64> = (0..SIDE * SIDE).map(|i| i as f64).collect();
        let identity: Vec<f64> = (0..SIDE * SIDE)
            .map(|i| f64::from(i % (SIDE + 1) == 0))
            .collect();
        let mut product = vec![0.0; SIDE * SIDE];
        multiply(&matrix, &identity, &mut product);
        assert_eq!(product, matrix);
    }

    #[test]
    fn x87_follows_the_logistic_map() {
        let (mut x, mut sum) = (0.3, 0.0);
        logistic(1, 3.7, &mut x, &mut sum);
        let expected = 3.7 * 0.3 * 0.7;
        assert!((x - expected).abs() < 1e-12);
        assert!((sum - (expected.sqrt() + 3.7 / expected)).abs() < 1e-12);
    }

    #[test]
    fn gravity_keeps_momentum() {
        let mut bodies = bodies();
        let momentum =
            |bodies: &[Body; 5]| -> f64 { bodies.iter().map(|b| b.velocity[1] * b.mass).sum() };
        let before = momentum(&bodies);
        for _ in 0..1000 {
            advance(&mut bodies, 0.001);
        }
        assert!((momentum(&bodies) - before).abs() < 1e-9);
    }
}
