//! Token sequences by their common prefixes.

use std::collections::{BTreeMap, HashMap};

use super::super::job::Namespace;

/// A tree of token runs for each namespace, with values at some of its nodes.
///
/// A node is where runs part or where a value is; there are no others.
pub(super) struct Tree<T> {
    nodes: Vec<Node<T>>,
    /// Places in `nodes` that can be used again.
    free: Vec<usize>,
    roots: HashMap<Namespace, usize>,
}

struct Node<T> {
    namespace: Namespace,
    parent: Option<usize>,
    /// Tokens since the parent.
    run: Vec<u32>,
    /// Tokens since the root.
    end: usize,
    /// By their first token.
    children: BTreeMap<u32, usize>,
    value: Option<T>,
}

/// How far tokens lead into a tree.
pub(super) struct Walk {
    /// The last node that is wholly on their way.
    pub node: usize,
    /// A child of that node whose run they leave half-way.
    pub below: Option<usize>,
    /// Tokens in common.
    pub shared: usize,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), roots: HashMap::new() }
    }
}

impl<T> Tree<T> {
    /// How far `tokens` lead; `None` if the namespace has nothing.
    pub fn walk(&self, namespace: Namespace, tokens: &[u32]) -> Option<Walk> {
        let mut walk = Walk { node: *self.roots.get(&namespace)?, below: None, shared: 0 };
        while let Some(first) = tokens.get(walk.shared) {
            let Some(&child) = self.nodes[walk.node].children.get(first) else { break };
            let run = &self.nodes[child].run;
            let same = common(run, &tokens[walk.shared..]);
            walk.shared += same;
            if same < run.len() {
                walk.below = Some(child);
                break;
            }
            walk.node = child;
        }
        Some(walk)
    }

    /// Tokens from the root to a node.
    pub fn end(&self, node: usize) -> usize {
        self.nodes[node].end
    }

    pub fn parent(&self, node: usize) -> Option<usize> {
        self.nodes[node].parent
    }

    pub fn children(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        self.nodes[node].children.values().copied()
    }

    pub fn value(&self, node: usize) -> Option<&T> {
        self.nodes[node].value.as_ref()
    }

    pub fn value_mut(&mut self, node: usize) -> Option<&mut T> {
        self.nodes[node].value.as_mut()
    }

    /// All values and their nodes.
    pub fn values(&self) -> impl Iterator<Item = (usize, &T)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(index, node)| Some((index, node.value.as_ref()?)))
    }

    /// Puts a value after `tokens`, unless there is one; says whether it did.
    pub fn insert(&mut self, namespace: Namespace, tokens: &[u32], value: T) -> bool {
        let walk = match self.walk(namespace, tokens) {
            Some(walk) => walk,
            None => {
                let root = self.add(namespace, None, Vec::new(), 0);
                self.roots.insert(namespace, root);
                Walk { node: root, below: None, shared: 0 }
            }
        };
        let mut node = match walk.below {
            Some(below) => self.split(below, walk.shared),
            None => walk.node,
        };
        if walk.shared < tokens.len() {
            let run = tokens[walk.shared..].to_vec();
            let first = run[0];
            let leaf = self.add(namespace, Some(node), run, tokens.len());
            self.nodes[node].children.insert(first, leaf);
            node = leaf;
        }
        let here = &mut self.nodes[node].value;
        let is_new = here.is_none();
        here.get_or_insert(value);
        is_new
    }

    /// Takes a value out, and the nodes that nothing needs without it.
    pub fn take(&mut self, mut node: usize) -> Option<T> {
        let value = self.nodes[node].value.take()?;
        while self.nodes[node].value.is_none() && self.nodes[node].children.is_empty() {
            let Node { namespace, parent, .. } = self.nodes[node];
            let run = std::mem::take(&mut self.nodes[node].run);
            self.free.push(node);
            let Some(parent) = parent else {
                self.roots.remove(&namespace);
                return Some(value);
            };
            self.nodes[parent].children.remove(&run[0]);
            node = parent;
        }
        self.join(node);
        Some(value)
    }

    fn add(
        &mut self,
        namespace: Namespace,
        parent: Option<usize>,
        run: Vec<u32>,
        end: usize,
    ) -> usize {
        let node = Node { namespace, parent, run, end, children: BTreeMap::new(), value: None };
        match self.free.pop() {
            Some(index) => {
                self.nodes[index] = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Puts a node where the way to `node` has `end` tokens, inside its run.
    fn split(&mut self, node: usize, end: usize) -> usize {
        let Node { namespace, parent, end: old_end, .. } = self.nodes[node];
        let run = &mut self.nodes[node].run;
        let rest = run.split_off(run.len() - (old_end - end));
        let run = std::mem::replace(run, rest);
        let (first, next) = (run[0], self.nodes[node].run[0]);
        let middle = self.add(namespace, parent, run, end);
        self.nodes[middle].children.insert(next, node);
        self.nodes[node].parent = Some(middle);
        if let Some(parent) = parent {
            self.nodes[parent].children.insert(first, middle);
        }
        middle
    }

    /// Takes a node out at which nothing is and nothing parts.
    fn join(&mut self, node: usize) {
        let Node { parent: Some(parent), value: None, ref children, .. } = self.nodes[node] else {
            return;
        };
        let mut children = children.values().copied();
        let (Some(child), None) = (children.next(), children.next()) else { return };
        let mut run = std::mem::take(&mut self.nodes[node].run);
        let first = run[0];
        run.append(&mut self.nodes[child].run);
        self.nodes[child].run = run;
        self.nodes[child].parent = Some(parent);
        self.nodes[parent].children.insert(first, child);
        self.nodes[node].children.clear();
        self.free.push(node);
    }

    /// Whether nothing is left, not even an unused node.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty() && self.free.len() == self.nodes.len()
    }
}

/// How many tokens two sequences have in common at their beginnings.
pub(in super::super) fn common(a: &[u32], b: &[u32]) -> usize {
    // Whole blocks are compared at the speed of memory.
    const BLOCK: usize = 64;
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK));
    let same = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}
