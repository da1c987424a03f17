//! Random programs with loops, branches, calls, vectors, page crossings and
//! self-modification: interpreter and translator end in the same state.

use crate::fault::Exit;
use crate::space::{CodeMap, GuestSpace, HostPage};
use crate::state::{cr, reg, seg};
use crate::vp::{Config, ProcessorMode, Vp};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;

const PAGES: usize = 16;
const CODE: u64 = 0x1000;
/// Data lies around a page boundary.
pub(super) const DATA: u64 = 0x9000;
pub(super) const STACK: u64 = 0xc000;
const DEFAULT_PROGRAMS: u64 = 300;

#[repr(C, align(4096))]
struct Page([u8; 4096]);

struct Space(Box<[Page]>);

// SAFETY: the pages live in the box, which is never replaced.
unsafe impl GuestSpace for Space {
    fn page(&mut self, page: u64) -> Option<HostPage> {
        let pointer = self.0.get_mut(page as usize)?.0.as_mut_ptr();
        Some(HostPage {
            pointer,
            index: page as u32,
            writable: true,
            executable: true,
        })
    }

    fn refresh(&mut self) {}
}

/// In 64-bit mode, with linear addresses as physical ones.
pub(super) fn machine(mode: ProcessorMode, cpl: u8) -> Vp {
    let pages = (0..PAGES).map(|_| Page([0; 4096])).collect();
    let code = Arc::new(CodeMap::new(PAGES, false));
    let config = Config {
        mode,
        ..Config::default()
    };
    let xcr0 = config.features.xcr0();
    let mut vp = Vp::new(config, Box::new(Space(pages)), code);
    vp.warm = 2;
    vp.hot = 3;
    vp.update_state(|state| {
        state.cr0 = cr::CR0_PE | cr::CR0_ET | cr::CR0_NE | cr::CR0_MP;
        state.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
        state.xcr0 = xcr0;
        state.efer = cr::EFER_LME | cr::EFER_LMA;
        state.seg[seg::CS].attributes = 0xa09b;
        state.seg[seg::CS].base = 0;
        state.cpl = cpl;
    });
    vp
}

/// A linear congruential generator, good enough for programs.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        self.0 >> 20 ^ self.0 << 30
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 8) % limit
    }

    /// Any register but the pointers (RBX, RSP) and the loop counter (RBP).
    pub(super) fn wide(&mut self) -> AsmRegister64 {
        let all = [
            rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
        ];
        all[self.below(13) as usize]
    }

    pub(super) fn narrow(&mut self) -> AsmRegister32 {
        let all = [
            eax, ecx, edx, esi, edi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d,
        ];
        all[self.below(13) as usize]
    }

    pub(super) fn vector(&mut self) -> AsmRegisterXmm {
        let all = [xmm0, xmm1, xmm5, xmm8, xmm15];
        all[self.below(5) as usize]
    }

    /// A displacement that sometimes makes an operand cross into the next page.
    pub(super) fn displacement(&mut self) -> i32 {
        self.below(128) as i32 - 64
    }
}

fn plain(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let (x, y) = (random.wide(), random.wide());
    let (m, n) = (random.narrow(), random.narrow());
    let at = random.displacement();
    let value = random.next() as i32;
    match random.below(34) {
        0 => a.add(x, y),
        1 => a.sub(m, n),
        2 => a.adc(x, qword_ptr(rbx + at)),
        3 => a.sbb(dword_ptr(rbx + at), m),
        4 => a.xor(x, value),
        5 => a.and(qword_ptr(rbx + at), y),
        6 => a.or(m, dword_ptr(rbx + at)),
        7 => a.mov(qword_ptr(rbx + at), y),
        8 => a.mov(x, qword_ptr(rbx + at)),
        9 => a.mov(word_ptr(rbx + at), value as u16 as i32),
        10 => a.movzx(m, byte_ptr(rbx + at)),
        11 => a.movsxd(x, dword_ptr(rbx + at)),
        12 => a.lea(x, qword_ptr(y + x * 4 + at)),
        13 => a.shl(x, random.below(64) as i32),
        14 => a.sar(m, cl),
        15 => a.rol(qword_ptr(rbx + at), cl),
        16 => a.imul_3(x, y, value),
        17 => a.mul(m),
        18 => a.setbe(byte_ptr(rbx + at)),
        19 => a.cmovl(x, y),
        20 => a.cmp(m, n),
        21 => a.test(x, y),
        22 => a.bt(x, random.below(64) as i32),
        23 => a.bswap(x),
        24 => a.xchg(qword_ptr(rbx + at), x),
        25 => a.inc(dword_ptr(rbx + at)),
        26 => a.neg(x),
        27 => {
            a.push(x)?;
            a.push(value)?;
            a.pop(y)?;
            a.pop(random.wide())
        }
        28 => a.movups(random.vector(), xmmword_ptr(rbx + at)),
        29 => a.paddd(random.vector(), random.vector()),
        30 => a.movups(xmmword_ptr(rbx + at), random.vector()),
        31 => a.cvtsi2sd(random.vector(), x),
        32 => a.lock().xadd(qword_ptr(rbx + at), y),
        _ => {
            a.pushfq()?;
            a.pop(x)
        }
    }
}

fn program(random: &mut Random) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    let mut function = a.create_label();
    let mut other = a.create_label();
    let mut patched = a.create_label();
    a.mov(ebp, 12 + random.below(20) as u32)?;
    a.set_label(&mut again)?;
    for _ in 0..4 + random.below(12) {
        match random.below(9) {
            0 => {
                let mut skip = a.create_label();
                match random.below(5) {
                    0 => a.jb(skip)?,
                    1 => a.jne(skip)?,
                    2 => a.jp(skip)?,
                    3 => a.jg(skip)?,
                    _ => a.js(skip)?,
                }
                for _ in 0..=random.below(3) {
                    plain(&mut a, random)?;
                }
                a.set_label(&mut skip)?;
                a.nop()?;
            }
            1 => a.call(function)?,
            2 => {
                a.lea(rdi, ptr(other))?;
                a.call(rdi)?;
            }
            _ => plain(&mut a, random)?,
        }
    }
    if random.below(3) == 0 {
        // The immediate of an instruction behind.
        a.lea(rax, ptr(patched))?;
        a.mov(byte_ptr(rax + 1), r8b)?;
        a.mov(eax, 1)?;
    }
    a.set_label(&mut patched)?;
    a.mov(ecx, random.next() as u32)?;
    a.dec(ebp)?;
    a.jne(again)?;
    a.hlt()?;
    if random.below(2) == 0 {
        // Functions on the next page, or across the boundary.
        let gap = 4000usize.saturating_sub(random.below(200) as usize);
        a.db(&vec![0x90; gap])?;
    }
    a.set_label(&mut function)?;
    plain(&mut a, random)?;
    plain(&mut a, random)?;
    a.ret()?;
    a.set_label(&mut other)?;
    plain(&mut a, random)?;
    a.call(function)?;
    a.ret()?;
    a.assemble(CODE)
}

/// What a program leaves behind.
#[derive(PartialEq, Debug)]
pub(super) struct End {
    pub(super) exit: Exit,
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    xmm: Vec<u128>,
    memory: Vec<u8>,
}

/// Runs a program that starts after `start` has had a hand in the state.
pub(super) fn run(vp: &mut Vp, code: &[u8], random: &mut Random, start: fn(&mut Vp)) -> End {
    let mut data = vec![0; 512];
    data.fill_with(|| random.next() as u8);
    vp.store_bytes(CODE, &vec![0x90; 4096]).expect("memory");
    vp.store_bytes(CODE + 4096, &vec![0x90; 4096])
        .expect("memory");
    for (at, piece) in (CODE..).step_by(1024).zip(code.chunks(1024)) {
        vp.store_bytes(at, piece).expect("memory");
    }
    vp.store_bytes(DATA - 256, &data).expect("memory");
    vp.code_written = false;
    for number in 0..16 {
        vp.state.gpr[number] = random.next();
        vp.state.fpu.set_xmm(
            number,
            u128::from(random.next()) << 64 | u128::from(random.next()),
        );
    }
    vp.state.gpr[3] = DATA;
    vp.state.gpr[reg::RSP] = STACK;
    vp.state.rip = CODE;
    start(vp);
    let exit = vp.run();
    // User code ends by the same HLT, which nobody handles.
    vp.shutdown = false;
    vp.exit = None;
    let mut memory = vec![0; 1024];
    vp.load_bytes(DATA - 512, &mut memory).expect("memory");
    let mut gpr = [0; 16];
    gpr.copy_from_slice(&vp.state.gpr[..16]);
    End {
        exit,
        gpr,
        rip: vp.state.rip,
        rflags: vp.state.rflags(),
        xmm: (0..16).map(|number| vp.state.fpu.xmm(number)).collect(),
        memory,
    }
}

#[test]
fn random_programs_end_as_interpreted() {
    compare_programs(0, Exit::Halt);
}

/// Hot code has checks for addresses of the lower half in user code only.
#[test]
fn random_user_programs_end_as_interpreted() {
    compare_programs(3, Exit::TripleFault);
}

fn compare_programs(cpl: u8, end: Exit) {
    let setting = |name: &str, default: u64| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let programs = setting("PARTITA_TRANSLATOR_PROGRAMS", DEFAULT_PROGRAMS);
    let seed = setting("PARTITA_TRANSLATOR_SEED", 1);
    let mut interpreter = machine(ProcessorMode::Interpret, cpl);
    let mut translator = machine(ProcessorMode::Translate, cpl);
    if !translator.translates() {
        println!("not compared: this host cannot run the translator");
        return;
    }
    for number in seed..seed + programs {
        let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let code = program(&mut random).expect("a program");
        let start = random.0;
        let expected = run(&mut interpreter, &code, &mut Random(start), |_| {});
        let seen = run(&mut translator, &code, &mut Random(start), |_| {});
        assert_eq!(expected.exit, end, "seed {number}");
        assert_eq!(seen, expected, "seed {number}, code {code:02x?}");
    }
}
