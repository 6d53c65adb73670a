//! Places in lists, as queries name them.

use dormouse_provider::{Direction, ListOf, Page};
use utoipa::IntoParams;

use super::error::{WireError, WireResult};

/// Most items on one page.
const MAX_PAGE: u32 = 100;

/// Which part of a list.
#[derive(serde::Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// 1 to 100; by default 20.
    limit: Option<u32>,
    /// Where the page before ended.
    cursor: Option<String>,
    /// `asc` or `desc`, which is the default.
    sort_order: Option<String>,
    /// Only those of the sandbox of this name.
    name: Option<String>,
}

pub(crate) fn page(limit: Option<u32>, cursor: Option<String>) -> WireResult<Page> {
    let limit = limit.unwrap_or(20);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(WireError::bad_request(format!("limit must be from 1 to {MAX_PAGE}")));
    }
    Ok(Page { limit, cursor: cursor.filter(|cursor| !cursor.is_empty()) })
}

pub(crate) fn order(text: Option<&str>) -> WireResult<Direction> {
    match text {
        None | Some("desc") => Ok(Direction::Descending),
        Some("asc") => Ok(Direction::Ascending),
        Some(_) => Err(WireError::bad_request("sortOrder must be asc or desc")),
    }
}

impl ListQuery {
    pub(crate) fn list(self) -> WireResult<ListOf> {
        Ok(ListOf {
            page: page(self.limit, self.cursor)?,
            order: order(self.sort_order.as_deref())?,
            sandbox: self.name,
        })
    }
}
