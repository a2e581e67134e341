//! The eBPF programs, as the build script made them.

/// The object file: programs, maps, and their types as BTF.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice.o"));

#[cfg(test)]
mod tests {
    use super::OBJECT;

    #[test]
    fn the_object_is_an_aligned_elf_file_for_bpf_with_types() {
        assert!(OBJECT.starts_with(b"\x7fELF\x02\x01"));
        // e_machine: EM_BPF.
        assert_eq!(OBJECT[18..20], [247, 0]);
        assert_eq!(OBJECT.as_ptr().align_offset(8), 0);
        let has = |name: &[u8]| OBJECT.windows(name.len()).any(|window| window == name);
        assert!(has(b".BTF\0") && has(b".BTF.ext\0") && !has(b".debug_info\0"));
    }
}
