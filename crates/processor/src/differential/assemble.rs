//! From trees to bytes.

use super::machine::*;
use super::operands::FRAME_SIZE;
use super::program::{FAR, FAR_SIZE, Patch, Piece, Privileged, Program, Way};
use crate::rflags;
use iced_x86::code_asm::registers::{get_gpr8, get_gpr16, get_gpr32, get_gpr64};
use iced_x86::code_asm::*;
use iced_x86::{
    BlockEncoderOptions, Code, Decoder, DecoderOptions, IcedError, Instruction, Register,
};

/// A program in memory.
pub(super) struct Assembled {
    pub image: Image,
    pub entry: u64,
    pub code: Vec<u8>,
    /// Linear addresses of the last four bytes of the sites.
    pub sites: Vec<u64>,
}

struct Assembler<'a> {
    a: CodeAssembler,
    program: &'a Program,
    functions: Vec<CodeLabel>,
    deep: CodeLabel,
    sites: Vec<CodeLabel>,
    used: usize,
    site_count: usize,
}

fn wide(register: Register) -> AsmRegister64 {
    get_gpr64(register).unwrap_or(rax)
}

/// The whole memory of a program; `None` when its code has no room.
pub(super) fn assemble(program: &Program) -> Option<Assembled> {
    let mut image = Image::new(&program.setup);
    let entry = CODE + program.offset;
    let made = Assembler::new(program).ok()?.all(entry);
    let (code, sites) = match made {
        Ok(made) => made,
        Err(error) => panic!("{error}"),
    };
    if program.offset as usize + code.len() > (CODE_PAGES * PAGE) as usize - 64 {
        return None;
    }
    let mut random = crate::oracle::Random::new(program.data_seed, 1);
    let mut fill = |image: &mut Image, first: u64, count: u64| {
        for at in (first * PAGE..(first + count) * PAGE).step_by(8) {
            image.write(at, random.operand());
        }
    };
    fill(&mut image, page::DATA, 16);
    fill(&mut image, page::OWN[0], OWN_PAGES);
    fill(&mut image, page::OWN[1], OWN_PAGES);
    fill(&mut image, page::STACK, STACK_PAGES);
    image.put(page::CODE * PAGE, &vec![0xcc; (CODE_PAGES * PAGE) as usize]);
    image.put(page::CODE * PAGE + program.offset, &code);
    lengths(&mut image, entry, &code);
    far_functions(&mut image, program);
    Some(Assembled {
        image,
        entry,
        code,
        sites,
    })
}

/// Tells the handler how long each instruction is; 0 where the program ends.
fn lengths(image: &mut Image, entry: u64, code: &[u8]) {
    let mut decoder = Decoder::with_ip(64, code, entry, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let length = match instruction.code() {
            Code::Hlt => 0,
            _ => instruction.len() as u8,
        };
        image.kernel(kernel::LENGTHS + instruction.ip() - CODE, &[length]);
    }
}

fn far_functions(image: &mut Image, program: &Program) {
    for (version, functions) in program.far.iter().enumerate() {
        let base = page::FUNCTIONS[version] * PAGE;
        image.put(base, &vec![0xcc; PAGE as usize]);
        for (i, body) in functions.iter().enumerate() {
            // The page's start is a neighbour of data.
            let offset = 0x100 + i as u64 * FAR_SIZE;
            let mut body = body.clone();
            loop {
                let code = far_function(&body, FUNCTIONS + offset).expect("a function");
                if code.len() <= FAR_SIZE as usize {
                    image.put(base + offset, &code);
                    break;
                }
                body.pop();
            }
        }
    }
}

fn far_function(body: &[Instruction], at: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.lea(rsp, ptr(rsp - FRAME_SIZE))?;
    for &instruction in body {
        a.add_instruction(instruction)?;
    }
    a.lea(rsp, ptr(rsp + FRAME_SIZE))?;
    a.ret()?;
    a.assemble(at)
}

/// Instructions of the sites come to this many in one program.
const MOST_SITES: usize = 64;

impl<'a> Assembler<'a> {
    fn new(program: &'a Program) -> Result<Self, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let functions = program.functions.iter().map(|_| a.create_label()).collect();
        let deep = a.create_label();
        let sites: Vec<_> = (0..MOST_SITES).map(|_| a.create_label()).collect();
        let count = |pieces: &[Piece]| pieces.iter().map(Piece::sites).sum::<usize>();
        let site_count =
            count(&program.body) + program.functions.iter().map(|f| count(f)).sum::<usize>();
        Ok(Self {
            a,
            program,
            functions,
            deep,
            sites,
            used: 0,
            site_count: site_count.min(MOST_SITES),
        })
    }

    fn all(mut self, entry: u64) -> Result<(Vec<u8>, Vec<u64>), IcedError> {
        let program = self.program;
        let counter = wide(program.counter);
        let mut again = self.a.create_label();
        self.a.mov(counter, program.loops)?;
        self.a.set_label(&mut again)?;
        for &(base, at) in &program.bases {
            self.a.mov(wide(base), at)?;
        }
        self.pieces(&program.body)?;
        match program.loops % 3 {
            0 => self.a.dec(counter)?,
            1 => self.a.sub(counter, 1)?,
            _ => self.a.add(counter, -1)?,
        }
        self.a.jne(again)?;
        self.a.hlt()?;
        for (i, body) in program.functions.iter().enumerate() {
            let mut label = self.functions[i];
            self.a.set_label(&mut label)?;
            self.a.lea(rsp, ptr(rsp - FRAME_SIZE))?;
            self.pieces(body)?;
            self.a.lea(rsp, ptr(rsp + FRAME_SIZE))?;
            self.a.ret()?;
        }
        self.deep_function()?;
        // Labels must be somewhere.
        while self.used < MOST_SITES {
            self.a.set_label(&mut self.sites[self.used])?;
            self.used += 1;
            self.a.nop()?;
        }
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = self.a.assemble_options(entry, options)?;
        let sites = self.sites[..self.site_count]
            .iter()
            .map(|label| result.label_ip(label))
            .collect::<Result<_, _>>()?;
        Ok((result.inner.code_buffer, sites))
    }

    /// Counts down in memory.
    fn deep_function(&mut self) -> Result<(), IcedError> {
        let mut out = self.a.create_label();
        let mut label = self.deep;
        self.a.set_label(&mut label)?;
        self.a.dec(dword_ptr(COUNTERS))?;
        self.a.js(out)?;
        self.a.call(self.deep)?;
        self.a.nop()?;
        self.a.set_label(&mut out)?;
        self.a.ret()
    }

    fn pieces(&mut self, pieces: &[Piece]) -> Result<(), IcedError> {
        pieces.iter().try_for_each(|piece| self.piece(piece))
    }

    fn piece(&mut self, piece: &Piece) -> Result<(), IcedError> {
        match piece {
            Piece::Straight(instructions) => instructions
                .iter()
                .try_for_each(|&instruction| self.a.add_instruction(instruction)),
            Piece::Over(code, inner) => {
                let mut behind = self.a.create_label();
                self.branch(*code, behind)?;
                self.pieces(inner)?;
                self.a.set_label(&mut behind)?;
                self.a.nop()
            }
            Piece::Dead(inner) => {
                let mut behind = self.a.create_label();
                self.a.jmp(behind)?;
                self.pieces(inner)?;
                self.a.set_label(&mut behind)?;
                self.a.nop()
            }
            Piece::Repeat(number, count, inner) => {
                let cell = dword_ptr(COUNTERS + 8 * u64::from(*number));
                let mut again = self.a.create_label();
                self.a.mov(cell, *count)?;
                self.a.set_label(&mut again)?;
                self.a.nop()?;
                self.pieces(inner)?;
                self.a.dec(cell)?;
                self.a.jne(again)
            }
            Piece::Call(number, way, register) => match self.functions.get(*number) {
                Some(&label) => self.call(label, *way, *register),
                None => Ok(()),
            },
            Piece::Far(number, way, register) => self.far(*number, *way, *register),
            Piece::Jump(register, inner) => {
                let mut behind = self.a.create_label();
                self.a.lea(wide(*register), ptr(behind))?;
                self.a.jmp(wide(*register))?;
                self.pieces(inner)?;
                self.a.set_label(&mut behind)?;
                self.a.nop()
            }
            Piece::Deep(count) => {
                self.a.mov(dword_ptr(COUNTERS), *count)?;
                self.a.call(self.deep)
            }
            Piece::Site(instruction) => {
                self.a.add_instruction(*instruction)?;
                if self.used < MOST_SITES {
                    // The label stands behind the four bytes.
                    self.a.set_label(&mut self.sites[self.used])?;
                    self.used += 1;
                    self.a.nop()?;
                }
                Ok(())
            }
            Piece::Patch(patch) => self.patch(patch),
            Piece::Service(number) => self.a.int(i32::from(*number)),
            Piece::Privileged(what, register) => self.privileged(*what, wide(*register)),
            Piece::Escape(register) => self.escape(wide(*register)),
        }
    }

    fn branch(&mut self, code: Code, to: CodeLabel) -> Result<(), IcedError> {
        let a = &mut self.a;
        match code {
            Code::Jo_rel8_64 => a.jo(to),
            Code::Jb_rel8_64 => a.jb(to),
            Code::Jae_rel8_64 => a.jae(to),
            Code::Je_rel8_64 => a.je(to),
            Code::Jne_rel8_64 => a.jne(to),
            Code::Jbe_rel8_64 => a.jbe(to),
            Code::Ja_rel8_64 => a.ja(to),
            Code::Js_rel8_64 => a.js(to),
            Code::Jp_rel8_64 => a.jp(to),
            Code::Jnp_rel8_64 => a.jnp(to),
            Code::Jl_rel8_64 => a.jl(to),
            Code::Jge_rel8_64 => a.jge(to),
            Code::Jle_rel8_64 => a.jle(to),
            Code::Jg_rel8_64 => a.jg(to),
            _ => a.jrcxz(to),
        }
    }

    fn call(&mut self, to: CodeLabel, way: Way, register: Register) -> Result<(), IcedError> {
        if matches!(way, Way::Direct) {
            return self.a.call(to);
        }
        self.a.lea(wide(register), ptr(to))?;
        self.indirect(way, register)
    }

    fn far(&mut self, number: u64, way: Way, register: Register) -> Result<(), IcedError> {
        let target = FUNCTIONS + 0x100 + number % FAR * FAR_SIZE;
        if matches!(way, Way::Direct) {
            return self.a.call(target);
        }
        self.a.mov(wide(register), target)?;
        self.indirect(way, register)
    }

    fn indirect(&mut self, way: Way, register: Register) -> Result<(), IcedError> {
        let register = wide(register);
        let mut behind = self.a.create_label();
        let pointer = COUNTERS + 0x800;
        match way {
            Way::Direct | Way::Register => self.a.call(register),
            Way::Memory => {
                self.a.mov(qword_ptr(pointer), register)?;
                self.a.call(qword_ptr(pointer))
            }
            Way::Return | Way::Jump => {
                self.a.mov(qword_ptr(pointer), register)?;
                self.a.lea(register, ptr(behind))?;
                self.a.push(register)?;
                if matches!(way, Way::Return) {
                    self.a.push(qword_ptr(pointer))?;
                    self.a.ret()?;
                } else {
                    self.a.jmp(qword_ptr(pointer))?;
                }
                self.a.set_label(&mut behind)?;
                self.a.nop()
            }
        }
    }

    fn patch(&mut self, patch: &Patch) -> Result<(), IcedError> {
        if self.site_count == 0 {
            return Ok(());
        }
        let pointer = wide(patch.pointer);
        let site = self.sites[patch.site % self.site_count];
        self.a.lea(pointer, ptr(site))?;
        if patch.alias {
            self.a.lea(pointer, ptr(pointer + (ALIAS - CODE) as i32))?;
        }
        let to = pointer + patch.offset as i32 - 4;
        let number = patch.value.number() as u32;
        match patch.size {
            1 => {
                let low = if number < 4 {
                    Register::AL + number
                } else {
                    Register::SPL + (number - 4)
                };
                self.a.mov(byte_ptr(to), get_gpr8(low).unwrap_or(al))
            }
            2 => {
                let low = get_gpr16(Register::AX + number).unwrap_or(ax);
                self.a.mov(word_ptr(to), low)
            }
            _ => {
                let low = get_gpr32(Register::EAX + number).unwrap_or(eax);
                self.a.mov(dword_ptr(to), low)
            }
        }
    }

    /// The accumulator and its friends may be overwritten.
    fn clobbers(&self) -> bool {
        let kept = [Register::RAX, Register::RCX, Register::RDX];
        !kept.contains(&self.program.counter)
            && self
                .program
                .bases
                .iter()
                .all(|(base, _)| !kept.contains(base))
    }

    fn privileged(&mut self, what: Privileged, t: AsmRegister64) -> Result<(), IcedError> {
        let clobbers = self.clobbers();
        let a = &mut self.a;
        match what {
            Privileged::Interrupts => {
                a.cli()?;
                a.nop()?;
                a.sti()
            }
            Privileged::Access => {
                a.stac()?;
                a.mov(t, qword_ptr(DATA + 6 * PAGE))?;
                a.clac()?;
                a.mov(t, qword_ptr(DATA + 6 * PAGE))
            }
            Privileged::Cr3 => {
                a.mov(t, cr3)?;
                a.mov(cr3, t)
            }
            Privileged::Invlpg(linear) => {
                a.mov(t, linear)?;
                a.invlpg(ptr(t))
            }
            Privileged::Iret => {
                let mut next = a.create_label();
                a.mov(t, rsp)?;
                a.push(i32::from(SS_KERNEL))?;
                a.push(t)?;
                a.pushfq()?;
                a.push(i32::from(CS_KERNEL))?;
                a.lea(t, ptr(next))?;
                a.push(t)?;
                a.iretq()?;
                a.set_label(&mut next)?;
                a.nop()
            }
            Privileged::SwapGs => {
                a.swapgs()?;
                a.mov(t, qword_ptr(super::machine::variable::CR3 as i32).gs())?;
                a.swapgs()
            }
            Privileged::ReadMsr if clobbers => {
                a.mov(ecx, 0x4000_0073)?;
                a.rdmsr()
            }
            Privileged::WriteMsr if clobbers => {
                a.mov(ecx, 0x4000_0073)?;
                a.wrmsr()
            }
            Privileged::In if clobbers => a.in_(eax, 0x80),
            Privileged::Out => a.out(0x80, al),
            Privileged::Hypercall => a.vmcall(),
            Privileged::Mmio(linear) => {
                a.mov(t, linear)?;
                a.mov(qword_ptr(t), t)?;
                a.add(qword_ptr(t), t)?;
                a.mov(t, qword_ptr(t))
            }
            Privileged::Syscall => a.syscall(),
            Privileged::Flags(value) => {
                let changed = rflags::ARITH | rflags::AC | rflags::IF | rflags::ID;
                a.push((value & changed) as i32)?;
                a.popfq()
            }
            Privileged::Cr8 => {
                a.and(t, 15)?;
                a.mov(cr8, t)?;
                a.mov(t, cr8)
            }
            _ => a.nop(),
        }
    }

    fn escape(&mut self, t: AsmRegister64) -> Result<(), IcedError> {
        let cell = qword_ptr(COUNTERS + 0x808);
        let a = &mut self.a;
        let mut inner = a.create_label();
        let mut innermost = a.create_label();
        let mut behind = a.create_label();
        a.mov(cell, rsp)?;
        a.call(inner)?;
        a.jmp(behind)?;
        a.set_label(&mut inner)?;
        a.push(t)?;
        a.call(innermost)?;
        a.set_label(&mut innermost)?;
        a.mov(rsp, cell)?;
        a.set_label(&mut behind)?;
        a.nop()
    }
}

impl Piece {
    /// Sites in this piece.
    fn sites(&self) -> usize {
        match self {
            Self::Site(_) => 1,
            Self::Over(_, inner) | Self::Dead(inner) | Self::Repeat(_, _, inner) => {
                inner.iter().map(Self::sites).sum()
            }
            Self::Jump(_, inner) => inner.iter().map(Self::sites).sum(),
            _ => 0,
        }
    }
}
