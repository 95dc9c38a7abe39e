//! How much memory a node takes of its machine, or of its control group, unless it is told.

use std::{fs, path::Path};

use crate::settings::{memory_plan::MIN_MEMORY, units::ByteSize};

/// Most that a node takes of a machine unless it is told to: its shares reach their largest sizes with less.
const MAX_DEFAULT_MEMORY: u64 = 8 << 30;

/// The memory that the node may take unless it is told: half of what its control group allows, or of the machine's. What
/// allocators keep, and what RocksDB takes for work in the background, comes on top of it.
pub(super) fn default_size() -> ByteSize {
    let machine = machine_bytes().unwrap_or(2 << 30);
    let bytes = match group_bytes(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")) {
        Some(limit) => limit.min(machine) / 2,
        None => machine / 2,
    };
    ByteSize((bytes.clamp(MIN_MEMORY.0, MAX_DEFAULT_MEMORY) >> 20) << 20)
}

fn machine_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The lowest limit of the process's control group and those above it: of version 2 (`memory.max`), or of version 1
/// (`memory.limit_in_bytes`).
fn group_bytes(groups: &Path, root: &Path) -> Option<u64> {
    let text = fs::read_to_string(groups).ok()?;
    let limits = text.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let group = Path::new(group.trim_start_matches('/'));
        // "max", or nothing to read, is no limit.
        let limit = |group: &Path| -> Option<u64> {
            fs::read_to_string(root.join(group).join(file)).ok()?.trim().parse().ok()
        };
        group.ancestors().filter_map(limit).collect()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_the_control_groups_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (groups, root) = (dir.path().join("cgroup"), dir.path().join("fs"));
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        fs::write(&groups, "0::/pods/ledger\n").unwrap();
        assert_eq!(group_bytes(&groups, &root), None);
        write("pods/ledger/memory.max", "max\n");
        assert_eq!(group_bytes(&groups, &root), None);
        write("pods/memory.max", "536870912\n");
        write("memory.max", "1073741824\n");
        assert_eq!(group_bytes(&groups, &root), Some(512 << 20));

        fs::write(&groups, "9:cpu:/x\n4:hugetlb,memory:/pods/ledger\n0::/\n").unwrap();
        fs::remove_file(root.join("memory.max")).unwrap();
        write("memory/pods/ledger/memory.limit_in_bytes", "268435456\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(group_bytes(&groups, &root), Some(256 << 20));
    }
}
