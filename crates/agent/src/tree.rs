//! Processes that descend from one, whatever group or session they made for themselves.

use std::collections::BTreeMap;

/// What `/proc/PID/stat` says of a process (`proc_pid_stat(5)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
}

/// `root` and all that descends from it, by parent, or by a group or session whose leader
/// does. One that has lost its parent and made a session of its own is nobody's any more:
/// that is how a daemon is made (`daemon(3)`).
pub(crate) fn of(root: i32) -> Vec<i32> {
    let processes: Vec<Process> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect();
    descendants(root, &processes)
}

fn parse(stat: &str) -> Option<Process> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    // A name may have spaces and parentheses in it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(1);
    let mut number = || fields.next()?.parse().ok();
    Some(Process { pid, parent: number()?, group: number()?, session: number()? })
}

fn descendants(root: i32, processes: &[Process]) -> Vec<i32> {
    let mut found = BTreeMap::from([(root, ())]);
    loop {
        let before = found.len();
        for process in processes {
            // PID 1 is nobody's child; group and session 0 are those of processes that have none.
            let belongs = [process.parent, process.group, process.session];
            if process.pid > 1 && belongs.iter().any(|id| *id > 1 && found.contains_key(id)) {
                found.insert(process.pid, ());
            }
        }
        if found.len() == before {
            return found.into_keys().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_are_read() {
        let found = parse("12 (a) b (c) S 3 4 5 0 -1 4194304").unwrap();
        assert_eq!(found, Process { pid: 12, parent: 3, group: 4, session: 5 });
        assert_eq!(parse("12 (sh"), None);
    }

    #[test]
    fn those_who_left_the_group_are_found_and_strangers_are_not() {
        let process = |pid, parent, group, session| Process { pid, parent, group, session };
        let processes = [
            process(1, 0, 1, 1),
            process(10, 1, 10, 10),
            process(11, 10, 10, 10),
            // `setsid` within the tree, and its child whose parent died.
            process(12, 11, 12, 12),
            process(13, 1, 12, 12),
            process(20, 1, 20, 20),
            process(21, 20, 20, 20),
        ];
        assert_eq!(descendants(10, &processes), [10, 11, 12, 13]);
        assert_eq!(descendants(20, &processes), [20, 21]);
    }
}
