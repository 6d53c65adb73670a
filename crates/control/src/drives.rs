//! Drives, as they are recorded. Their files are made by the host, with the first run that
//! may write to them.

use std::collections::BTreeMap;

use dormouse_provider::{Direction, Drive, DriveSort, ListDrives, Mount, Namespace, ProviderError, Result};
use dormouse_store::{DriveFilter, DriveOrder, DriveRow, StoreError};
use dormouse_types::DriveId;

use crate::present::take_page;
use crate::rules::{check_drive_name, invalid};
use crate::{Control, internal};

/// Bytes that a drive may hold whose maker named no size.
const DEFAULT_SIZE: u64 = 1 << 40;

/// Most that may be asked for, in bytes.
const MAX_SIZE: u64 = 16 << 40;

/// Least, in bytes: a file system needs a few blocks for itself.
const MIN_SIZE: u64 = 1 << 20;

fn presented(row: &DriveRow) -> Drive {
    Drive {
        id: row.id.clone(),
        name: row.name.clone(),
        project: row.namespace.project.clone(),
        max_size: u64::try_from(row.max_size_bytes).unwrap_or(0),
        attached: row.attached.clone(),
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

impl Control {
    async fn find_drive(&self, namespace: &Namespace, name: &str) -> Result<DriveRow> {
        check_drive_name(name)?;
        let found = self.db.drive(namespace, name).await.map_err(internal("read drive"))?;
        found.ok_or_else(|| ProviderError::NotFound(format!("drive {name}")))
    }

    /// Whether a sandbox of this host can have these drives.
    ///
    /// # Errors
    /// [`ProviderError::NotFound`] for one that does not exist,
    /// [`ProviderError::Elsewhere`] for one of another server.
    pub(crate) async fn check_drives(
        &self,
        namespace: &Namespace,
        mounts: &BTreeMap<String, Mount>,
    ) -> Result<()> {
        if !mounts.is_empty() && !self.runner.has_drives() {
            return Err(invalid("mounts: this server's storage driver has no drives; it needs btrfs"));
        }
        for mount in mounts.values() {
            let row = self.find_drive(namespace, &mount.drive).await?;
            self.here(&row.host_id, || format!("drive {}", row.name)).await?;
        }
        Ok(())
    }

    pub(crate) async fn list_drives(
        &self,
        namespace: &Namespace,
        list: ListDrives,
    ) -> Result<(Vec<Drive>, Option<String>)> {
        let order = match list.sort {
            DriveSort::CreatedAt => DriveOrder::CreatedAt,
            DriveSort::UpdatedAt => DriveOrder::UpdatedAt,
            DriveSort::Name => DriveOrder::Name,
        };
        // A cursor is the id, and what the list is sorted by.
        let after = list.page.cursor.as_deref().map(|cursor| {
            let (id, key) = cursor.split_once('~').unwrap_or_default();
            (key.to_owned(), id.to_owned())
        });
        if let Some((_, id)) = &after {
            id.parse::<DriveId>().map_err(|_| invalid("cursor: not one that this list gave"))?;
        }
        let filter = DriveFilter {
            order,
            ascending: list.order == Direction::Ascending,
            name_prefix: list.name_prefix.as_deref(),
            after,
            limit: i64::from(list.page.limit) + 1,
        };
        let mut rows = self.db.drives_of(namespace, &filter).await.map_err(internal("list drives"))?;
        let next = take_page(&mut rows, list.page.limit, |row| {
            let key = match list.sort {
                DriveSort::CreatedAt => row.created_at.to_string(),
                DriveSort::UpdatedAt => row.updated_at.to_string(),
                DriveSort::Name => row.name.clone(),
            };
            format!("{}~{key}", row.id)
        });
        Ok((rows.iter().map(presented).collect(), next))
    }

    pub(crate) async fn one_drive(&self, namespace: &Namespace, name: &str) -> Result<Drive> {
        Ok(presented(&self.find_drive(namespace, name).await?))
    }

    pub(crate) async fn have_drive(
        &self,
        namespace: &Namespace,
        name: &str,
        max_size: Option<u64>,
    ) -> Result<(Drive, bool)> {
        check_drive_name(name)?;
        if !self.runner.has_drives() {
            return Err(invalid("this server's storage driver has no drives; it needs btrfs"));
        }
        if max_size.is_some_and(|size| !(MIN_SIZE..=MAX_SIZE).contains(&size)) {
            return Err(invalid(format!("maxSizeBytes must be from {MIN_SIZE} to {MAX_SIZE}")));
        }
        // Somebody may make it, or delete it, between the look and the deed.
        for _ in 0..3 {
            if let Some(row) = self.db.drive(namespace, name).await.map_err(internal("read drive"))? {
                let other = max_size.is_some_and(|size| i64::try_from(size) != Ok(row.max_size_bytes));
                if other {
                    let has = row.max_size_bytes;
                    return Err(ProviderError::InUse(format!(
                        "drive {name} is there with a size of {has} bytes"
                    )));
                }
                return Ok((presented(&row), false));
            }
            let row = self.new_drive(namespace, name, max_size.unwrap_or(DEFAULT_SIZE));
            match self.db.insert_drive(&row).await {
                Ok(()) => {
                    self.runner.saved().await?;
                    return Ok((presented(&row), true));
                }
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(internal("insert drive")(error)),
            }
        }
        Err(ProviderError::Conflict(format!("drive {name}")))
    }

    fn new_drive(&self, namespace: &Namespace, name: &str, size: u64) -> DriveRow {
        let now = self.clock.now();
        DriveRow {
            id: DriveId::generate(),
            namespace: namespace.clone(),
            name: name.to_owned(),
            host_id: self.config.host.clone(),
            max_size_bytes: i64::try_from(size).unwrap_or(i64::MAX),
            made: false,
            attached: None,
            created_at: now,
            updated_at: now,
        }
    }

    pub(crate) async fn copy_drive(&self, namespace: &Namespace, from: &str, name: &str) -> Result<Drive> {
        check_drive_name(name)?;
        let source = self.find_drive(namespace, from).await?;
        self.here(&source.host_id, || format!("drive {from}")).await?;
        let size = u64::try_from(source.max_size_bytes).unwrap_or(0);
        let row = DriveRow { made: source.made, ..self.new_drive(namespace, name, size) };
        let taken = self.db.drive(namespace, name).await.map_err(internal("read drive"))?;
        if taken.is_some() {
            return Err(ProviderError::Conflict(format!("drive {name}")));
        }
        if source.made {
            // Without a row it is nobody's, and goes with the next start.
            self.runner.copy_drive(&source.id, &row.id, size).await?;
        }
        match self.db.insert_drive(&row).await {
            Ok(()) => {}
            Err(error) => {
                self.runner.drop_drive(&row.id).await?;
                return Err(match error {
                    StoreError::Conflict(_) => ProviderError::Conflict(format!("drive {name}")),
                    error => internal("insert drive")(error),
                });
            }
        }
        self.runner.saved().await?;
        Ok(presented(&row))
    }

    pub(crate) async fn drop_drive(&self, namespace: &Namespace, name: &str) -> Result<Drive> {
        let row = self.find_drive(namespace, name).await?;
        let gone = self.db.delete_drive(&row, self.clock.now()).await.map_err(internal("delete drive"))?;
        if !gone {
            let row = self.find_drive(namespace, name).await?;
            let holder = row.attached.map(|(_, sandbox)| sandbox.to_string()).unwrap_or_default();
            return Err(ProviderError::InUse(format!(
                "drive {name} is attached to sandbox {holder}; stop that first"
            )));
        }
        self.runner.tidy();
        self.runner.saved().await?;
        Ok(presented(&row))
    }
}
