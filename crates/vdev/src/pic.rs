//! The pair of 8259A interrupt controllers with the edge/level registers of
//! later chipsets (Intel 8259A data sheet).

/// Command and data ports of the master and the slave, and the two ELCRs.
pub(crate) const MASTER_COMMAND: u16 = 0x20;
pub(crate) const MASTER_DATA: u16 = 0x21;
pub(crate) const SLAVE_COMMAND: u16 = 0xA0;
pub(crate) const SLAVE_DATA: u16 = 0xA1;
pub(crate) const MASTER_ELCR: u16 = 0x4D0;
pub(crate) const SLAVE_ELCR: u16 = 0x4D1;

/// The master's input that the slave is connected to.
const CASCADE: u8 = 2;
/// Lines 0, 1 and 2 of the master cannot be level-triggered; on the slave 8
/// and 13 cannot.
const MASTER_ELCR_MASK: u8 = 0xF8;
const SLAVE_ELCR_MASK: u8 = 0xDE;

/// Which initialisation command word the data port expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    Done,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Debug)]
struct Pic {
    elcr: u8,
    elcr_mask: u8,
    lines: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    base: u8,
    /// The input with the lowest priority.
    lowest: u8,
    init: Init,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read_isr: bool,
    poll: bool,
    is_master: bool,
}

impl Pic {
    fn new(is_master: bool) -> Self {
        Self {
            elcr: 0,
            elcr_mask: if is_master {
                MASTER_ELCR_MASK
            } else {
                SLAVE_ELCR_MASK
            },
            lines: 0,
            irr: 0,
            imr: 0,
            isr: 0,
            base: 0,
            lowest: 7,
            init: Init::Done,
            needs_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_isr: false,
            poll: false,
            is_master,
        }
    }

    fn set_line(&mut self, input: u8, asserted: bool) {
        let bit = 1 << input;
        let rising = asserted && self.lines & bit == 0;
        if asserted {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        let level = self.elcr & bit != 0;
        if rising || asserted && level {
            self.irr |= bit;
        } else if !asserted && level {
            self.irr &= !bit;
        }
    }

    /// Inputs in order of priority, highest first.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let lowest = self.lowest;
        (1..=8).map(move |step| (lowest + step) & 7)
    }

    /// The request that drives the output, if one does.
    fn pending(&self) -> Option<u8> {
        let requests = self.irr & !self.imr;
        if requests == 0 || self.init != Init::Done {
            return None;
        }
        for input in self.by_priority() {
            let bit = 1 << input;
            if requests & bit != 0 && !self.blocks_itself(input) {
                return Some(input);
            }
            let ignored = self.special_mask && self.imr & bit != 0;
            if self.isr & bit != 0 && !ignored && !self.is_nested_cascade(input) {
                return None;
            }
        }
        None
    }

    fn blocks_itself(&self, input: u8) -> bool {
        self.isr & 1 << input != 0 && !self.is_nested_cascade(input)
    }

    /// In special fully nested mode the slave may interrupt again while one
    /// of its interrupts is in service.
    fn is_nested_cascade(&self, input: u8) -> bool {
        self.special_fully_nested && self.is_master && input == CASCADE
    }

    /// Takes the pending request into service. Without one the answer is the
    /// spurious input 7.
    fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.pending() else {
            return 7;
        };
        let bit = 1 << input;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input;
            }
        } else {
            self.isr |= bit;
        }
        input
    }

    fn read_command(&mut self) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.pending() {
                Some(_) => 0x80 | self.acknowledge(),
                None => 0,
            };
        }
        if self.read_isr { self.isr } else { self.irr }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.write_icw1(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_icw1(&mut self, value: u8) {
        let level_requests = self.lines & self.elcr;
        *self = Self {
            elcr: self.elcr,
            lines: self.lines,
            irr: level_requests,
            base: self.base,
            init: Init::Icw2,
            needs_icw4: value & 1 != 0,
            single: value & 2 != 0,
            ..Self::new(self.is_master)
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            1 => drop(self.end_highest()),
            3 => self.isr &= !(1 << input),
            5 => {
                if let Some(ended) = self.end_highest() {
                    self.lowest = ended;
                }
            }
            6 => self.lowest = input,
            7 => {
                self.isr &= !(1 << input);
                self.lowest = input;
            }
            _ => {}
        }
    }

    /// Non-specific EOI: ends the interrupt with the highest priority.
    fn end_highest(&mut self) -> Option<u8> {
        let masked = if self.special_mask { self.imr } else { 0 };
        let in_service = self.isr & !masked;
        let input = self
            .by_priority()
            .find(|input| in_service & 1 << input != 0)?;
        self.isr &= !(1 << input);
        Some(input)
    }

    fn write_ocw3(&mut self, value: u8) {
        self.poll = value & 4 != 0;
        if value & 2 != 0 {
            self.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.init = match self.init {
            Init::Done => {
                self.imr = value;
                Init::Done
            }
            Init::Icw2 => {
                self.base = value & 0xF8;
                match (self.single, self.needs_icw4) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Done,
                }
            }
            // The cascade is wired; what software says about it is known.
            Init::Icw3 if self.needs_icw4 => Init::Icw4,
            Init::Icw3 => Init::Done,
            Init::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                Init::Done
            }
        };
    }

    fn write_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_mask;
        self.irr |= self.lines & self.elcr;
    }
}

/// Master and slave, cascaded on the master's input 2.
#[derive(Debug)]
pub(crate) struct PicPair {
    master: Pic,
    slave: Pic,
}

impl PicPair {
    pub(crate) fn new() -> Self {
        Self {
            master: Pic::new(true),
            slave: Pic::new(false),
        }
    }

    /// Drives line 0 to 15. Line 2 is taken by the cascade.
    pub(crate) fn set_line(&mut self, line: u8, asserted: bool) {
        match line {
            CASCADE => {}
            0..=7 => self.master.set_line(line, asserted),
            8..=15 => self.slave.set_line(line - 8, asserted),
            _ => {}
        }
        self.update_cascade();
    }

    /// The level of INTR.
    pub(crate) fn output(&self) -> bool {
        self.master.pending().is_some()
    }

    /// The acknowledge cycle: the vector of the interrupt now in service.
    pub(crate) fn acknowledge(&mut self) -> u8 {
        let spurious = self.master.pending().is_none();
        let input = self.master.acknowledge();
        let vector = if input == CASCADE && !spurious {
            let slave_input = self.slave.acknowledge();
            self.slave.base | slave_input
        } else {
            self.master.base | input
        };
        self.update_cascade();
        vector
    }

    pub(crate) fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            MASTER_COMMAND => self.master.read_command(),
            MASTER_DATA => self.master.imr,
            SLAVE_COMMAND => self.slave.read_command(),
            SLAVE_DATA => self.slave.imr,
            MASTER_ELCR => self.master.elcr,
            SLAVE_ELCR => self.slave.elcr,
            _ => 0xFF,
        };
        self.update_cascade();
        value
    }

    pub(crate) fn write(&mut self, port: u16, value: u8) {
        match port {
            MASTER_COMMAND => self.master.write_command(value),
            MASTER_DATA => self.master.write_data(value),
            SLAVE_COMMAND => self.slave.write_command(value),
            SLAVE_DATA => self.slave.write_data(value),
            MASTER_ELCR => self.master.write_elcr(value),
            SLAVE_ELCR => self.slave.write_elcr(value),
            _ => {}
        }
        self.update_cascade();
    }

    /// The slave's output is the master's input 2. After an acknowledge the
    /// slave may have another request, which has to show as a new edge.
    fn update_cascade(&mut self) {
        self.master.set_line(CASCADE, false);
        self.master.irr &= !(1 << CASCADE);
        self.master
            .set_line(CASCADE, self.slave.pending().is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Initialised as PC operating systems do: vectors 0x20 and 0x28.
    fn pair() -> PicPair {
        let mut pic = PicPair::new();
        for (command, data, base, cascade) in [
            (MASTER_COMMAND, MASTER_DATA, 0x20, 4),
            (SLAVE_COMMAND, SLAVE_DATA, 0x28, 2),
        ] {
            pic.write(command, 0x11);
            for value in [base, cascade, 1, 0] {
                pic.write(data, value);
            }
        }
        pic
    }

    #[test]
    fn mask_reads_back() {
        let mut pic = PicPair::new();
        pic.write(MASTER_DATA, 0xFB);
        pic.write(SLAVE_DATA, 0xA5);
        assert_eq!((pic.read(MASTER_DATA), pic.read(SLAVE_DATA)), (0xFB, 0xA5));
        pic.write(MASTER_COMMAND, 0x11);
        assert_eq!(pic.read(MASTER_DATA), 0, "initialising clears the mask");
    }

    #[test]
    fn priorities_nest() {
        let mut pic = pair();
        pic.set_line(4, true);
        pic.set_line(1, true);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x21);
        assert!(!pic.output(), "line 4 waits for line 1");
        pic.set_line(0, true);
        assert_eq!(pic.acknowledge(), 0x20);
        pic.write(MASTER_COMMAND, 0x0B);
        assert_eq!(pic.read(MASTER_COMMAND), 3);
        pic.write(MASTER_COMMAND, 0x20);
        assert!(!pic.output());
        pic.write(MASTER_COMMAND, 0x61);
        assert_eq!(pic.acknowledge(), 0x24);
    }

    #[test]
    fn masked_lines_stay_requested() {
        let mut pic = pair();
        pic.write(MASTER_DATA, 0x10);
        pic.set_line(4, true);
        assert!(!pic.output());
        pic.write(MASTER_COMMAND, 0x0A);
        assert_eq!(pic.read(MASTER_COMMAND), 0x10);
        pic.write(MASTER_DATA, 0);
        assert_eq!(pic.acknowledge(), 0x24);
    }

    #[test]
    fn slave_interrupts_through_the_cascade() {
        let mut pic = pair();
        pic.set_line(8, true);
        pic.set_line(12, true);
        assert_eq!(pic.acknowledge(), 0x28);
        pic.set_line(3, true);
        assert!(!pic.output(), "the cascade is above line 3");
        pic.write(SLAVE_COMMAND, 0x20);
        assert!(!pic.output());
        pic.write(MASTER_COMMAND, 0x20);
        assert_eq!(pic.acknowledge(), 0x2C);
        pic.write(SLAVE_COMMAND, 0x20);
        pic.write(MASTER_COMMAND, 0x20);
        assert_eq!(pic.acknowledge(), 0x23);
    }

    #[test]
    fn edges_and_levels() {
        let mut pic = pair();
        pic.set_line(5, true);
        assert_eq!(pic.acknowledge(), 0x25);
        pic.write(MASTER_COMMAND, 0x20);
        assert!(!pic.output(), "one edge is one interrupt");
        pic.set_line(5, false);
        pic.write(MASTER_ELCR, 0xFF);
        assert_eq!(pic.read(MASTER_ELCR), 0xF8);
        pic.set_line(5, true);
        assert_eq!(pic.acknowledge(), 0x25);
        pic.write(MASTER_COMMAND, 0x20);
        assert!(pic.output(), "a level repeats");
        pic.set_line(5, false);
        assert!(!pic.output());
    }

    #[test]
    fn spurious_acknowledge() {
        let mut pic = pair();
        assert_eq!(pic.acknowledge(), 0x27);
        pic.write(MASTER_COMMAND, 0x0B);
        assert_eq!(pic.read(MASTER_COMMAND), 0, "nothing is in service");
    }

    #[test]
    fn auto_eoi_rotation_and_poll() {
        let mut pic = pair();
        pic.write(MASTER_COMMAND, 0x11);
        for value in [0x20, 4, 3] {
            pic.write(MASTER_DATA, value);
        }
        pic.write(MASTER_COMMAND, 0x80);
        pic.set_line(3, true);
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x23);
        pic.set_line(3, false);
        pic.set_line(3, true);
        assert_eq!(pic.acknowledge(), 0x24, "line 3 has become the lowest");
        pic.write(MASTER_COMMAND, 0x0C);
        assert_eq!(pic.read(MASTER_COMMAND), 0x83);
        pic.write(MASTER_COMMAND, 0x0C);
        assert_eq!(pic.read(MASTER_COMMAND), 0);
    }

    #[test]
    fn special_mask_mode_lets_lower_lines_through() {
        let mut pic = pair();
        pic.set_line(1, true);
        pic.acknowledge();
        pic.set_line(6, true);
        pic.write(MASTER_DATA, 2);
        assert!(!pic.output());
        pic.write(MASTER_COMMAND, 0x68);
        assert_eq!(pic.acknowledge(), 0x26);
    }
}
