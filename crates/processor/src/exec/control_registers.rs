//! MOV CRn, CLTS, LMSW, SMSW, XSETBV and what a change of paging entails
//! (SDM 3A 2.5, 4.1, 4.10.4; SDM 2B "MOV—Move to/from Control Registers").

use crate::Vp;
use crate::cpuid::valid_xcr0;
use crate::fault::{Exit, Step, Stop};
use crate::host;
use crate::mmu::PAGE_MASK;
use crate::op::Op;
use crate::state::{cr, reg, seg};

/// CR0 bits that exist.
const CR0_ALL: u64 = cr::CR0_PE
    | cr::CR0_MP
    | cr::CR0_EM
    | cr::CR0_TS
    | cr::CR0_ET
    | cr::CR0_NE
    | cr::CR0_WP
    | cr::CR0_AM
    | cr::CR0_NW
    | cr::CR0_CD
    | cr::CR0_PG;
/// CR4 bits whose change drops all translations.
const CR4_FLUSHES: u64 =
    cr::CR4_PSE | cr::CR4_PAE | cr::CR4_PGE | cr::CR4_PCIDE | cr::CR4_SMEP | cr::CR4_SMAP;
/// CR3: keep the address space's translations (with CR4.PCIDE).
const CR3_KEEP: u64 = 1 << 63;

/// MOV r, CRn.
pub(crate) fn mov_from_cr(vp: &mut Vp, op: &Op) -> Step {
    check_number(vp, op.dst)?;
    let value = match op.dst {
        0 => vp.state.cr0,
        2 => vp.state.cr2,
        3 => vp.state.cr3,
        4 => vp.state.cr4,
        _ => vp.answer(Exit::ReadCr8)?,
    };
    vp.set_gpr(op.size, op.src, value);
    Ok(())
}

/// MOV CRn, r.
pub(crate) fn mov_to_cr(vp: &mut Vp, op: &Op) -> Step {
    check_number(vp, op.dst)?;
    let value = vp.gpr(op.size, op.src);
    match op.dst {
        0 => vp.write_cr0(value),
        2 => {
            vp.state.cr2 = value;
            Ok(())
        }
        3 => vp.write_cr3(value),
        4 => vp.write_cr4(value),
        _ => {
            if value > 15 {
                return Err(vp.gp(0));
            }
            vp.answer(Exit::WriteCr8 { value: value as u8 }).map(|_| ())
        }
    }
}

fn check_number(vp: &mut Vp, number: u8) -> Step {
    // CR8 is reached with REX only, so never outside 64-bit code.
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(vp.ud());
    }
    if vp.state.cpl != 0 {
        return Err(vp.gp(0));
    }
    Ok(())
}

/// CLTS.
pub(crate) fn clts(vp: &mut Vp, _op: &Op) -> Step {
    if vp.state.cpl != 0 {
        return Err(vp.gp(0));
    }
    vp.state.cr0 &= !cr::CR0_TS;
    vp.mode_changed();
    Ok(())
}

/// LMSW: PE can be set but not cleared.
pub(crate) fn lmsw(vp: &mut Vp, op: &Op) -> Step {
    if vp.state.cpl != 0 {
        return Err(vp.gp(0));
    }
    let source = vp.read_rm(op, 2)?;
    let loaded = cr::CR0_MP | cr::CR0_EM | cr::CR0_TS;
    let value = (vp.state.cr0 & !loaded) | (source & (loaded | cr::CR0_PE));
    vp.write_cr0(value)
}

/// SMSW.
pub(crate) fn smsw(vp: &mut Vp, op: &Op) -> Step {
    vp.check_umip()?;
    let size = if op.has_memory() { 2 } else { op.size };
    vp.write_rm(op, size, vp.state.cr0)
}

/// XSETBV.
pub(crate) fn xsetbv(vp: &mut Vp, _op: &Op) -> Step {
    if vp.state.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(vp.ud());
    }
    let value = vp.state.gpr[reg::RAX] & 0xffff_ffff | vp.state.gpr[reg::RDX] << 32;
    let index = vp.state.gpr[reg::RCX] as u32;
    if vp.state.cpl != 0 || index != 0 || !valid_xcr0(value) {
        return Err(vp.gp(0));
    }
    vp.state.xcr0 = value;
    vp.mode_changed();
    Ok(())
}

/// XGETBV.
pub(crate) fn xgetbv(vp: &mut Vp, _op: &Op) -> Step {
    if vp.state.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(vp.ud());
    }
    let value = match vp.state.gpr[reg::RCX] as u32 {
        0 => vp.state.xcr0,
        1 => vp.components_in_use(),
        _ => return Err(vp.gp(0)),
    };
    vp.state.gpr[reg::RAX] = value & 0xffff_ffff;
    vp.state.gpr[reg::RDX] = value >> 32;
    Ok(())
}

impl Vp {
    /// SGDT, SIDT, SLDT, STR and SMSW are privileged under CR4.UMIP.
    pub(crate) fn check_umip(&mut self) -> Step {
        if self.state.cr4 & cr::CR4_UMIP != 0 && self.state.cpl != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    fn write_cr0(&mut self, value: u64) -> Step {
        let old = self.state.cr0;
        let new = (value & CR0_ALL) | cr::CR0_ET;
        let paging = new & cr::CR0_PG != 0;
        let was_paging = old & cr::CR0_PG != 0;
        let invalid = value >> 32 != 0
            || (paging && new & cr::CR0_PE == 0)
            || (new & cr::CR0_NW != 0 && new & cr::CR0_CD == 0);
        if invalid {
            return Err(self.gp(0));
        }
        let mut efer = self.state.efer;
        if paging && !was_paging {
            efer = self.check_paging_on()?;
        } else if was_paging && !paging {
            if self.state.code64() || self.state.cr4 & cr::CR4_PCIDE != 0 {
                return Err(self.gp(0));
            }
            efer &= !cr::EFER_LMA;
        }
        let pae = self.state.cr4 & cr::CR4_PAE != 0 && efer & cr::EFER_LMA == 0;
        let reload = cr::CR0_PG | cr::CR0_CD | cr::CR0_NW;
        if paging && pae && (old ^ new) & reload != 0 {
            self.state.pdpte = self.read_pdptes(self.state.cr3)?;
        }
        self.state.efer = efer;
        self.state.cr0 = new;
        if (old ^ new) & (cr::CR0_PG | cr::CR0_WP | cr::CR0_PE) != 0 {
            self.mmu.flush_all();
        }
        if new & cr::CR0_PE == 0 {
            self.state.cpl = 0;
        }
        self.mode_changed();
        Ok(())
    }

    /// PG goes from 0 to 1: EFER as it will be.
    fn check_paging_on(&mut self) -> Result<u64, Stop> {
        let efer = self.state.efer;
        if efer & cr::EFER_LME == 0 {
            return Ok(efer);
        }
        if self.state.cr4 & cr::CR4_PAE == 0 || self.state.seg[seg::CS].long() {
            return Err(self.gp(0));
        }
        Ok(efer | cr::EFER_LMA)
    }

    fn write_cr3(&mut self, value: u64) -> Step {
        let pcide = self.state.cr4 & cr::CR4_PCIDE != 0;
        let keep = pcide && value & CR3_KEEP != 0;
        let value = if pcide { value & !CR3_KEEP } else { value };
        if self.state.long_mode() {
            if value >> self.config.physical_bits != 0 {
                return Err(self.gp(0));
            }
        } else if self.pae_paging() {
            self.state.pdpte = self.read_pdptes(value)?;
        }
        self.state.cr3 = value;
        let pcid = pcide.then_some(((value & PAGE_MASK) as u16, keep));
        self.mmu.new_address_space(pcid);
        Ok(())
    }

    /// CR3 from a TSS.
    pub(crate) fn load_task_cr3(&mut self, value: u64) -> Step {
        if self.pae_paging() {
            self.state.pdpte = self.read_pdptes(value)?;
        }
        self.state.cr3 = value;
        self.mmu.new_address_space(None);
        Ok(())
    }

    /// PAE paging outside long mode is on.
    fn pae_paging(&self) -> bool {
        self.state.cr0 & cr::CR0_PG != 0
            && self.state.cr4 & cr::CR4_PAE != 0
            && !self.state.long_mode()
    }

    fn write_cr4(&mut self, value: u64) -> Step {
        let old = self.state.cr4;
        let changed = old ^ value;
        if value & !self.config.features.cr4() != 0 {
            return Err(self.gp(0));
        }
        if self.state.long_mode() {
            if value & cr::CR4_PAE == 0 {
                return Err(self.gp(0));
            }
        } else if value & cr::CR4_PCIDE != 0 {
            return Err(self.gp(0));
        }
        let pcide_on = changed & value & cr::CR4_PCIDE != 0;
        if pcide_on && self.state.cr3 & PAGE_MASK != 0 {
            return Err(self.gp(0));
        }
        let reload = cr::CR4_PAE | cr::CR4_PSE | cr::CR4_PGE | cr::CR4_SMEP;
        let pae =
            self.state.cr0 & cr::CR0_PG != 0 && value & cr::CR4_PAE != 0 && !self.state.long_mode();
        if pae && changed & reload != 0 {
            self.state.pdpte = self.read_pdptes(self.state.cr3)?;
        }
        self.state.cr4 = value;
        if changed & CR4_FLUSHES != 0 {
            self.mmu.flush_all();
            if value & cr::CR4_PCIDE != 0 {
                // The running address space gets a number that its PCID keeps.
                let pcid = (self.state.cr3 & PAGE_MASK) as u16;
                self.mmu.new_address_space(Some((pcid, false)));
            }
        }
        self.mode_changed();
        Ok(())
    }

    /// Reads the four page-directory pointers of PAE paging: #GP(0) for
    /// reserved bits in a present one (SDM 3A 4.4.1).
    fn read_pdptes(&mut self, cr3: u64) -> Result<[u64; 4], Stop> {
        let reserved = 0x1e6 | !((1u64 << self.config.physical_bits) - 1);
        let mut entries = [0; 4];
        for (i, entry) in entries.iter_mut().enumerate() {
            let gpa = (cr3 & 0xffff_ffe0) + 8 * i as u64;
            // Where no memory is, a real bus reads all ones.
            *entry = match self.mmu.host_page(gpa >> 12) {
                Some(page) => host::load64(page.pointer.wrapping_add((gpa & PAGE_MASK) as usize)),
                None => u64::MAX,
            };
            if *entry & 1 != 0 && *entry & reserved != 0 {
                return Err(self.gp(0));
            }
        }
        Ok(entries)
    }
}
