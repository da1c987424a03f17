# Multiboot-1 header, 32-bit entry, long mode, and the way further processors take.

    .section .multiboot, "a"
    .balign 4
    .long 0x1BADB002
    .long 0
    .long -0x1BADB002

    .section .text.boot, "ax"
    .code32
    .global _start
_start:
    cli
    cld
    mov dword ptr [kit_multiboot_info], ebx
    mov esp, offset kit_boot_stack_top
    xor ebp, ebp

    # Identity map 4 GiB with 2 MiB pages, open to user mode.
    mov eax, offset kit_pdpt
    or eax, 7
    mov dword ptr [kit_pml4], eax
    mov eax, offset kit_pd
    or eax, 7
    mov edi, offset kit_pdpt
    mov ecx, 4
.Lpdpt:
    mov dword ptr [edi], eax
    add eax, 0x1000
    add edi, 8
    dec ecx
    jnz .Lpdpt
    mov edi, offset kit_pd
    mov eax, 0x87
    mov ecx, 2048
.Lpd:
    mov dword ptr [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz .Lpd
    mov ebx, 0

# Common to all processors: EBX is the processor's index, ESP its stack.
kit_enter_long_mode:
    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov eax, offset kit_pml4
    mov cr3, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x901
    wrmsr
    mov eax, 0x80010033
    mov cr0, eax
    lgdt [kit_boot_gdtr]
    .byte 0xEA
    .long kit_long_mode
    .word 0x08

    .code64
kit_long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov esp, esp
    fninit
    mov edi, ebx
    call kit_start
.Lstopped:
    cli
    hlt
    jmp .Lstopped

# Copied below 1 MiB; a STARTUP interrupt begins here in real mode.
    .code16
    .global kit_trampoline
    .global kit_trampoline_end
kit_trampoline:
    cli
    cld
    mov ax, cs
    mov ds, ax
    .byte 0x66, 0x0F, 0x01, 0x16
    .word .Ltrampoline_gdtr - kit_trampoline
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xEA
    .long kit_processor_start
    .word 0x18
.Ltrampoline_gdtr:
    .word 0x5F
    .long kit_boot_gdt
kit_trampoline_end:

    .code32
kit_processor_start:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov ebx, 1
    lock xadd dword ptr [kit_processor_ticket], ebx
    cmp ebx, 64
    jae .Ltoo_many
    mov eax, ebx
    shl eax, 15
    mov esp, offset kit_processor_stacks
    add esp, eax
    jmp kit_enter_long_mode
.Ltoo_many:
    hlt
    jmp .Ltoo_many
    .code64

    .section .data.boot, "aw"
    .balign 16
    .global kit_boot_gdt
kit_boot_gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF
    .quad 0x00CF93000000FFFF
    .quad 0x00CF9B000000FFFF
    .quad 0x00CFFB000000FFFF
    .quad 0x00CFF3000000FFFF
    .quad 0x00AFFB000000FFFF
    .quad 0x00009B000000FFFF
    .quad 0x000093000000FFFF
    .quad 0, 0, 0
kit_boot_gdtr:
    .word 0x5F
    .quad kit_boot_gdt
    .balign 4
    .global kit_multiboot_info
kit_multiboot_info:
    .long 0
    .global kit_processor_ticket
kit_processor_ticket:
    .long 1

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .global kit_pml4
kit_pml4:
    .skip 4096
kit_pdpt:
    .skip 4096
kit_pd:
    .skip 16384
    .skip 65536
kit_boot_stack_top:
# 32 KiB for each further processor; the label is the top of (unused) number 0's.
    .skip 0x8000
kit_processor_stacks:
    .skip 0x8000 * 64
    .text
