//! What CPUID tells: exactly what this processor implements, under the name
//! of the host's processor.
//!
//! The instruction set is that of x86-64-v3 with x87, MMX and the system
//! features of a current processor. Instructions that are handed to the host's
//! own (AVX, FMA, the BMIs, RDRAND, AES and the like) are offered where the
//! host has them, so on an old host it is x86-64-v2. What a
//! platform decides (APIC, topology, invariant TSC, hypervisor leaves) is left
//! for whoever answers [`crate::Exit::Cpuid`] to fill in.

use crate::exec::fpu::{COMPONENT_AVX, COMPONENTS, area_size};
use crate::exec::vex::XCR0_AVX;
use crate::native::vex_feature;
use crate::state::{State, cr};
use iced_x86::CpuidFeature;
use std::arch::x86_64::{__cpuid_count, CpuidResult};

/// Bits of leaf 1, ECX.
mod leaf1_ecx {
    pub(super) const SSE3: u32 = 1 << 0;
    pub(super) const PCLMULQDQ: u32 = 1 << 1;
    pub(super) const SSSE3: u32 = 1 << 9;
    pub(super) const FMA: u32 = 1 << 12;
    pub(super) const CX16: u32 = 1 << 13;
    pub(super) const PCID: u32 = 1 << 17;
    pub(super) const SSE4_1: u32 = 1 << 19;
    pub(super) const SSE4_2: u32 = 1 << 20;
    pub(super) const MOVBE: u32 = 1 << 22;
    pub(super) const POPCNT: u32 = 1 << 23;
    pub(super) const AES: u32 = 1 << 25;
    pub(super) const XSAVE: u32 = 1 << 26;
    pub(super) const OSXSAVE: u32 = 1 << 27;
    pub(super) const AVX: u32 = 1 << 28;
    pub(super) const F16C: u32 = 1 << 29;
    pub(super) const RDRAND: u32 = 1 << 30;
    /// Always offered.
    pub(super) const BASE: u32 =
        SSE3 | SSSE3 | CX16 | PCID | SSE4_1 | SSE4_2 | MOVBE | POPCNT | XSAVE;
    /// Offered if the host has them.
    pub(super) const HOST: u32 = PCLMULQDQ | AES | RDRAND;
}

/// Leaf 1, EDX: FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, SEP, MTRR, PGE,
/// MCA, CMOV, PAT, PSE-36, CLFSH, MMX, FXSR, SSE, SSE2.
const LEAF1_EDX: u32 = 0x078b_f9ff;
/// The bits of it that AMD repeats in leaf 0x8000_0001.
const AMD_COMMON_EDX: u32 = 0x0183_f3ff & !(1 << 11);

/// Bits of leaf 7, EBX.
mod leaf7_ebx {
    pub(super) const FSGSBASE: u32 = 1 << 0;
    pub(super) const TSC_ADJUST: u32 = 1 << 1;
    pub(super) const BMI1: u32 = 1 << 3;
    pub(super) const AVX2: u32 = 1 << 5;
    /// FDP is written with an unmasked exception only.
    pub(super) const FDP_EXCPTN_ONLY: u32 = 1 << 6;
    pub(super) const SMEP: u32 = 1 << 7;
    pub(super) const BMI2: u32 = 1 << 8;
    pub(super) const ERMS: u32 = 1 << 9;
    pub(super) const INVPCID: u32 = 1 << 10;
    /// FCS and FDS are saved as 0.
    pub(super) const ZERO_FCS_FDS: u32 = 1 << 13;
    pub(super) const RDSEED: u32 = 1 << 18;
    pub(super) const SMAP: u32 = 1 << 20;
    pub(super) const CLFLUSHOPT: u32 = 1 << 23;
    pub(super) const BASE: u32 =
        FSGSBASE | TSC_ADJUST | FDP_EXCPTN_ONLY | SMEP | ERMS | INVPCID | ZERO_FCS_FDS | SMAP;
    pub(super) const HOST: u32 = RDSEED | CLFLUSHOPT;
}

/// Leaf 7, ECX: UMIP.
const LEAF7_ECX_UMIP: u32 = 1 << 2;
/// Leaf 7, ECX: RDPID.
const LEAF7_ECX_RDPID: u32 = 1 << 22;
/// Leaf 7, EDX: fast short REP MOVSB.
const LEAF7_EDX_FSRM: u32 = 1 << 4;
/// Leaf 7, EDX: IA32_ARCH_CAPABILITIES.
const LEAF7_EDX_ARCH_CAPABILITIES: u32 = 1 << 29;

/// Leaf 0x8000_0001, ECX: LAHF in 64-bit mode, PREFETCHW.
const EXT1_ECX: u32 = 1 << 0 | 1 << 8;
/// The same: LZCNT.
const EXT1_ECX_LZCNT: u32 = 1 << 5;
/// The same for AMD: legacy multi-core reporting, topology extensions.
const EXT1_ECX_AMD: u32 = 1 << 1 | 1 << 22;
/// Leaf 0x8000_0001, EDX: SYSCALL.
const EXT1_EDX_SYSCALL: u32 = 1 << 11;
/// Leaf 0x8000_0001, EDX: NX, 1 GiB pages, RDTSCP, long mode.
const EXT1_EDX: u32 = 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// The same for AMD: MMX extensions.
const EXT1_EDX_AMD: u32 = 1 << 22;

/// Leaf 0x8000_0008, EBX (AMD): no speculative store bypass, no branch type
/// confusion.
const AMD_NOT_AFFECTED: u32 = 1 << 26 | 1 << 29;
/// Leaf 0x8000_0021, EAX (AMD): LFENCE serializes, null selectors clear the
/// base, automatic IBRS, no return stack overflow. Guest code is never
/// speculated on here, so a kernel needs none of its own defences.
const AMD_EXT21: u32 = 1 << 2 | 1 << 6 | 1 << 8 | 1 << 29 | 1 << 30;
/// Leaf 0x8000_0021, ECX (AMD): not affected by transient scheduler attacks.
const AMD_EXT21_ECX: u32 = 1 << 1 | 1 << 2;

/// CR4 bits that can be set.
const CR4: u64 = cr::CR4_VME
    | cr::CR4_PVI
    | cr::CR4_TSD
    | cr::CR4_DE
    | cr::CR4_PSE
    | cr::CR4_PAE
    | cr::CR4_MCE
    | cr::CR4_PGE
    | cr::CR4_PCE
    | cr::CR4_OSFXSR
    | cr::CR4_OSXMMEXCPT
    | cr::CR4_UMIP
    | cr::CR4_FSGSBASE
    | cr::CR4_PCIDE
    | cr::CR4_OSXSAVE
    | cr::CR4_SMEP
    | cr::CR4_SMAP;

/// XCR0 bits that can be set with any host: x87 and SSE.
const XCR0_SSE: u64 = 3;
/// Leaf 0Dh, subleaf 1, EAX: XSAVEOPT, XSAVEC, XGETBV of 1.
const XSAVE_EXTENSIONS: u32 = 7;

/// The last leaf.
const MAX_LEAF: u32 = 0xd;
/// The last extended leaf with an Intel host.
const MAX_EXTENDED_INTEL: u32 = 0x8000_0008;
/// The last extended leaf with an AMD host.
const MAX_EXTENDED_AMD: u32 = 0x8000_0021;

/// What a processor offers through CPUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// EBX, ECX, EDX of leaf 0.
    vendor: [u32; 3],
    amd: bool,
    signature: u32,
    /// Leaf 1, ECX and EDX.
    leaf1: [u32; 2],
    /// Leaf 7, EBX, ECX and EDX.
    leaf7: [u32; 3],
    /// LZCNT, as in leaf 0x8000_0001, ECX.
    lzcnt: u32,
    /// Leaves 0x8000_0002 to 0x8000_0004.
    brand: [[u32; 4]; 3],
    /// Leaf 2 of an Intel host.
    cache_descriptors: [u32; 4],
    /// Leaf 4 (Intel) or 0x8000_001D (AMD): the host's caches.
    caches: Vec<[u32; 4]>,
    /// Leaves 0x8000_0005 and 0x8000_0006.
    amd_caches: [[u32; 4]; 2],
}

fn words(result: CpuidResult) -> [u32; 4] {
    [result.eax, result.ebx, result.ecx, result.edx]
}

fn host(leaf: u32, subleaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe, reason = "became a safe function in a later compiler")]
    // SAFETY: every x86-64 processor has CPUID.
    words(unsafe { __cpuid_count(leaf, subleaf) })
}

/// A leaf of the host, zeros beyond its last.
fn host_leaf(leaf: u32, subleaf: u32) -> [u32; 4] {
    let [last, ..] = host(leaf & 0x8000_0000, 0);
    if leaf > last {
        [0; 4]
    } else {
        host(leaf, subleaf)
    }
}

/// The host's caches, each as if it belonged to one processor.
fn host_caches(leaf: u32) -> Vec<[u32; 4]> {
    (0..8)
        .map(|subleaf| host_leaf(leaf, subleaf))
        .take_while(|values| values[0] & 0x1f != 0)
        .map(|[a, b, c, d]| [a & 0x3fff, b, c, d])
        .collect()
}

fn offered_xcr0(avx: bool) -> u64 {
    if avx { COMPONENTS } else { XCR0_SSE }
}

/// XCR0 may have this value on this host: x87 always, AVX only with SSE (SDM 1
/// 13.3).
pub fn valid_xcr0(value: u64) -> bool {
    let offered = offered_xcr0(vex_feature(CpuidFeature::AVX));
    value & 1 != 0 && value & !offered == 0 && value & XCR0_AVX != COMPONENT_AVX
}

fn offered(bits: &[(CpuidFeature, u32)]) -> u32 {
    let has = |(feature, bit): &(CpuidFeature, u32)| if vex_feature(*feature) { *bit } else { 0 };
    bits.iter().map(has).fold(0, |all, bit| all | bit)
}

/// Leaf 1, ECX: what the host has, and its operating system allows.
fn vex_leaf1() -> u32 {
    offered(&[
        (CpuidFeature::AVX, leaf1_ecx::AVX),
        (CpuidFeature::FMA, leaf1_ecx::FMA),
        (CpuidFeature::F16C, leaf1_ecx::F16C),
    ])
}

/// The same for leaf 7, EBX.
fn vex_leaf7() -> u32 {
    offered(&[
        (CpuidFeature::AVX2, leaf7_ebx::AVX2),
        (CpuidFeature::BMI1, leaf7_ebx::BMI1),
        (CpuidFeature::BMI2, leaf7_ebx::BMI2),
    ])
}

impl Features {
    /// What is implemented, with the identity of the host's processor.
    pub fn host() -> Self {
        let [_, b, c, d] = host(0, 0);
        // "AuthenticAMD" and "HygonGenuine" differ from Intel in the same way.
        let amd = matches!(b, 0x6874_7541 | 0x6f67_7948);
        let leaf1 = host_leaf(1, 0);
        let leaf7 = host_leaf(7, 0);
        let mut edx7 = leaf7[3] & LEAF7_EDX_FSRM;
        if !amd {
            edx7 |= LEAF7_EDX_ARCH_CAPABILITIES;
        }
        Self {
            vendor: [b, c, d],
            amd,
            signature: leaf1[0] & 0x0fff_3fff,
            leaf1: [
                leaf1_ecx::BASE | (leaf1[2] & leaf1_ecx::HOST) | vex_leaf1(),
                LEAF1_EDX,
            ],
            leaf7: [
                leaf7_ebx::BASE | (leaf7[1] & leaf7_ebx::HOST) | vex_leaf7(),
                LEAF7_ECX_UMIP | (leaf7[2] & LEAF7_ECX_RDPID),
                edx7,
            ],
            lzcnt: if is_x86_feature_detected!("lzcnt") {
                EXT1_ECX_LZCNT
            } else {
                0
            },
            brand: [0x8000_0002, 0x8000_0003, 0x8000_0004].map(|leaf| host_leaf(leaf, 0)),
            cache_descriptors: if amd { [0; 4] } else { host_leaf(2, 0) },
            caches: host_caches(if amd { 0x8000_001d } else { 4 }),
            amd_caches: [host_leaf(0x8000_0005, 0), host_leaf(0x8000_0006, 0)],
        }
    }

    /// Family, model and stepping: leaf 1 EAX, and EDX after reset.
    pub fn signature(&self) -> u32 {
        self.signature
    }

    /// AMD's (and Hygon's) behaviour where vendors differ.
    pub fn is_amd(&self) -> bool {
        self.amd
    }

    /// RDPID is offered.
    pub fn rdpid(&self) -> bool {
        self.leaf7[1] & LEAF7_ECX_RDPID != 0
    }

    /// INVPCID is offered.
    pub fn invpcid(&self) -> bool {
        self.leaf7[0] & leaf7_ebx::INVPCID != 0
    }

    /// CR4 bits that can be set.
    pub fn cr4(&self) -> u64 {
        CR4
    }

    /// XCR0 bits that can be set.
    pub fn xcr0(&self) -> u64 {
        offered_xcr0(self.avx())
    }

    /// AVX is offered.
    pub fn avx(&self) -> bool {
        self.leaf1[0] & leaf1_ecx::AVX != 0
    }

    /// EFER bits that can be set, besides those of every processor.
    pub(crate) fn extra_efer(&self) -> u64 {
        // Automatic IBRS (AMD APM 2, "EFER.AIBRSE"): kept, with no effect.
        if self.amd { 1 << 21 } else { 0 }
    }

    /// MSR 0x8B: no microcode update is known on AMD, the first one on Intel.
    pub(crate) fn microcode(&self) -> u64 {
        if self.amd { 0 } else { 1 << 32 }
    }

    /// EAX, EBX, ECX and EDX. OSXSAVE follows CR4; Intel shows SYSCALL in
    /// 64-bit code only. Leaves that do not exist read 0.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, state: &State) -> [u32; 4] {
        match leaf {
            0 => [MAX_LEAF, self.vendor[0], self.vendor[1], self.vendor[2]],
            1 => self.leaf_1(state),
            2 => self.cache_descriptors,
            4 if !self.amd => self.cache(subleaf),
            7 if subleaf == 0 => [0, self.leaf7[0], self.leaf7[1], self.leaf7[2]],
            0xd => self.xsave(subleaf, state),
            0x8000_0000..=0x8000_ffff => self.extended(leaf, subleaf, state),
            _ => [0; 4],
        }
    }

    fn leaf_1(&self, state: &State) -> [u32; 4] {
        let mut ecx = self.leaf1[0];
        if state.cr4 & cr::CR4_OSXSAVE != 0 {
            ecx |= leaf1_ecx::OSXSAVE;
        }
        // CLFLUSH works on 64 bytes; one logical processor.
        [self.signature, 8 << 8 | 1 << 16, ecx, self.leaf1[1]]
    }

    fn cache(&self, subleaf: u32) -> [u32; 4] {
        self.caches.get(subleaf as usize).copied().unwrap_or([0; 4])
    }

    fn xsave(&self, subleaf: u32, state: &State) -> [u32; 4] {
        let now = area_size(state.xcr0);
        match subleaf {
            0 => [self.xcr0() as u32, now, area_size(self.xcr0()), 0],
            1 => [XSAVE_EXTENSIONS, now, 0, 0],
            // The upper halves of the YMM registers, a component of user code.
            2 if self.avx() => {
                let at = area_size(0);
                [area_size(COMPONENT_AVX) - at, at, 0, 0]
            }
            _ => [0; 4],
        }
    }

    fn extended(&self, leaf: u32, subleaf: u32, state: &State) -> [u32; 4] {
        let last = if self.amd {
            MAX_EXTENDED_AMD
        } else {
            MAX_EXTENDED_INTEL
        };
        if leaf > last {
            return [0; 4];
        }
        match leaf {
            0x8000_0000 if self.amd => [last, self.vendor[0], self.vendor[1], self.vendor[2]],
            0x8000_0000 => [last, 0, 0, 0],
            0x8000_0001 => self.extended_1(state),
            0x8000_0002..=0x8000_0004 => self.brand[(leaf - 0x8000_0002) as usize],
            0x8000_0005 if self.amd => self.amd_caches[0],
            0x8000_0006 => self.amd_caches[1],
            0x8000_0008 => {
                let ebx = if self.amd { AMD_NOT_AFFECTED } else { 0 };
                // Physical bits are the configuration's.
                [48 << 8 | 46, ebx, 0, 0]
            }
            0x8000_001d => self.cache(subleaf),
            0x8000_0021 => [AMD_EXT21, 0, AMD_EXT21_ECX, 0],
            _ => [0; 4],
        }
    }

    fn extended_1(&self, state: &State) -> [u32; 4] {
        if self.amd {
            let edx = self.leaf1[1] & AMD_COMMON_EDX | EXT1_EDX | EXT1_EDX_SYSCALL | EXT1_EDX_AMD;
            return [self.signature, 0, EXT1_ECX | EXT1_ECX_AMD | self.lzcnt, edx];
        }
        let syscall = if state.code64() { EXT1_EDX_SYSCALL } else { 0 };
        [0, 0, EXT1_ECX | self.lzcnt, EXT1_EDX | syscall]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::seg;

    #[test]
    fn offers_x86_64_v2_with_any_host() {
        let features = Features::host();
        let mut state = State::power_on();
        let [_, _, ecx, edx] = features.cpuid(1, 0, &state);
        let v2 = leaf1_ecx::SSE3
            | leaf1_ecx::SSSE3
            | leaf1_ecx::SSE4_1
            | leaf1_ecx::SSE4_2
            | leaf1_ecx::CX16
            | leaf1_ecx::POPCNT;
        assert_eq!(ecx & v2, v2);
        assert_eq!(edx & (1 << 23 | 1 << 24 | 1 << 25 | 1 << 26), 0xf << 23);
        // OSXSAVE only when the guest has set it.
        assert_eq!(ecx & leaf1_ecx::OSXSAVE, 0);
        state.cr4 |= cr::CR4_OSXSAVE;
        assert_ne!(features.cpuid(1, 0, &state)[2] & leaf1_ecx::OSXSAVE, 0);
        // AVX512F, VAES.
        let [_, ebx, ecx, _] = features.cpuid(7, 0, &state);
        assert_eq!((ebx & 1 << 16, ecx & 1 << 9), (0, 0));
        assert_eq!(features.cpuid(7, 1, &state), [0; 4]);
    }

    #[test]
    fn what_needs_the_host_is_the_hosts() {
        let features = Features::host();
        let state = State::power_on();
        let bit = |leaf, register: usize, bit: u32| {
            features.cpuid(leaf, 0, &state)[register] >> bit & 1 != 0
        };
        assert_eq!(bit(1, 2, 28), is_x86_feature_detected!("avx"));
        assert_eq!(bit(1, 2, 12), is_x86_feature_detected!("fma"));
        assert_eq!(bit(1, 2, 29), is_x86_feature_detected!("f16c"));
        assert_eq!(bit(7, 1, 5), is_x86_feature_detected!("avx2"));
        assert_eq!(bit(7, 1, 3), is_x86_feature_detected!("bmi1"));
        assert_eq!(bit(7, 1, 8), is_x86_feature_detected!("bmi2"));
        let lzcnt = bit(0x8000_0001, 2, 5);
        assert_eq!(lzcnt, is_x86_feature_detected!("lzcnt"));
    }

    #[test]
    fn areas_grow_with_xcr0() {
        let features = Features::host();
        let mut state = State::power_on();
        let most = if features.avx() { 832 } else { 576 };
        let mask = features.xcr0() as u32;
        state.xcr0 = 1;
        assert_eq!(features.cpuid(0xd, 0, &state), [mask, 576, most, 0]);
        assert_eq!(features.cpuid(0xd, 1, &state), [7, 576, 0, 0]);
        state.xcr0 = features.xcr0();
        assert_eq!(features.cpuid(0xd, 0, &state), [mask, most, most, 0]);
        assert_eq!(features.cpuid(0xd, 1, &state), [7, most, 0, 0]);
        let upper = if features.avx() {
            [256, 576, 0, 0]
        } else {
            [0; 4]
        };
        assert_eq!(features.cpuid(0xd, 2, &state), upper);
        assert_eq!(features.cpuid(0xd, 3, &state), [0; 4]);
        assert_eq!(features.cpuid(0xd, 63, &state), [0; 4]);
    }

    #[test]
    fn identity_is_the_hosts() {
        let features = Features::host();
        let state = State::power_on();
        let [_, b, c, d] = host(0, 0);
        assert_eq!(features.cpuid(0, 0, &state)[1..], [b, c, d]);
        assert_eq!(features.cpuid(0x8000_0002, 0, &state), host(0x8000_0002, 0));
        assert_eq!(features.cpuid(1, 0, &state)[0], features.signature());
        assert_eq!(features.cpuid(0x8000_ffff, 0, &state), [0; 4]);
    }

    #[test]
    fn syscall_shows_in_64_bit_code() {
        let features = Features::host();
        let mut state = State::power_on();
        state.efer = cr::EFER_LMA | cr::EFER_LME;
        state.seg[seg::CS].attributes |= 1 << 13;
        let long = 1 << 29 | 1 << 20 | 1 << 26 | 1 << 27 | EXT1_EDX_SYSCALL;
        assert_eq!(features.cpuid(0x8000_0001, 0, &state)[3] & long, long);
    }
}
