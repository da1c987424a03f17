//! Smaller programs.

use super::program::{Piece, Program};

impl Program {
    /// All programs that are one step smaller.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut program = self.clone();
            change(&mut program);
            all.push(program);
        };
        if !self.rounds.is_empty() {
            with(&|p| p.rounds.truncate(p.rounds.len() / 2));
            with(&|p| {
                p.rounds.remove(0);
            });
        }
        if self.requests {
            with(&|p| p.requests = false);
        }
        let half = self.body.len() / 2;
        if half > 0 {
            with(&|p| drop(p.body.drain(..half)));
            with(&|p| p.body.truncate(half));
        }
        for list in lists(self) {
            all.push(list);
        }
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut program = self.clone();
            change(&mut program);
            all.push(program);
        };
        if self.loops > 1 {
            with(&|p| p.loops /= 2);
            with(&|p| p.loops -= 1);
        }
        if self.far.iter().flatten().any(|body| !body.is_empty()) {
            with(&|p| p.far.iter_mut().flatten().for_each(Vec::clear));
        }
        all
    }
}

fn lists(program: &Program) -> Vec<Program> {
    let mut all = Vec::new();
    for body in smaller_list(&program.body) {
        all.push(Program {
            body,
            ..program.clone()
        });
    }
    for (i, function) in program.functions.iter().enumerate() {
        for body in smaller_list(function) {
            let mut smaller = program.clone();
            smaller.functions[i] = body;
            all.push(smaller);
        }
    }
    all
}

fn smaller_list(pieces: &[Piece]) -> Vec<Vec<Piece>> {
    let mut all = Vec::new();
    for i in 0..pieces.len() {
        let mut shorter = pieces.to_vec();
        shorter.remove(i);
        all.push(shorter);
    }
    for (i, piece) in pieces.iter().enumerate() {
        for replacement in piece.smaller() {
            let mut list = pieces.to_vec();
            list.splice(i..=i, replacement);
            all.push(list);
        }
    }
    all
}

impl Piece {
    /// What could stand in its place.
    fn smaller(&self) -> Vec<Vec<Self>> {
        match self {
            Self::Straight(instructions) if instructions.len() > 1 => (0..instructions.len())
                .map(|i| {
                    let mut fewer = instructions.clone();
                    fewer.remove(i);
                    vec![Self::Straight(fewer)]
                })
                .collect(),
            Self::Over(code, inner) => {
                let mut all = vec![inner.clone()];
                all.extend(
                    smaller_list(inner)
                        .into_iter()
                        .map(|list| vec![Self::Over(*code, list)]),
                );
                all
            }
            Self::Dead(inner) => smaller_list(inner)
                .into_iter()
                .map(|list| vec![Self::Dead(list)])
                .collect(),
            Self::Repeat(number, count, inner) => {
                let mut all = vec![inner.clone()];
                if *count > 1 {
                    all.push(vec![Self::Repeat(*number, count / 2, inner.clone())]);
                }
                all.extend(
                    smaller_list(inner)
                        .into_iter()
                        .map(|list| vec![Self::Repeat(*number, *count, list)]),
                );
                all
            }
            Self::Jump(register, inner) if !inner.is_empty() => {
                vec![vec![Self::Jump(*register, Vec::new())]]
            }
            _ => Vec::new(),
        }
    }

    /// This piece or one inside is such a one.
    pub(super) fn any(&self, such: &dyn Fn(&Self) -> bool) -> bool {
        such(self)
            || match self {
                Self::Over(_, inner)
                | Self::Dead(inner)
                | Self::Repeat(_, _, inner)
                | Self::Jump(_, inner) => inner.iter().any(|piece| piece.any(such)),
                _ => false,
            }
    }
}
